"""A preparation that ends its process at some cases, as a library may at a damaged file."""

import os

from viewalign.tasks.preprocessing import Preprocessor


class Deadly(Preprocessor):
    """Crashes at images with certain names."""

    def __call__(self, images, mask=None):
        if any("deadly" in path.name for path in images.values()):
            os._exit(3)
        return super().__call__(images, mask)
