"""Draw the README's picture of the method from the MNI152 T1 average that is part of nilearn, without a download.

Run it from the root of the checkout: `python docs/draw_method.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from method_picture import method_picture
from nilearn.datasets import load_mni152_template

from viewalign.views.batch import sample_views

SIZE = (96, 96, 96)
SEED = 1663
"""A seed for which both boxes are visible on one axial slice."""


def main() -> None:
    """Draw `docs/images/method.png`."""
    # nilearn's axes are (x to the right, y to the front, z up); ours are (z up, y to the back, x to the left).
    template = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    volume = np.ascontiguousarray(template[::-1, ::-1].transpose(2, 1, 0))
    path = method_picture(volume, sample_views(volume, SIZE, SEED), Path(__file__).parent / "images" / "method.png")
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
