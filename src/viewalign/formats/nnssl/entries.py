"""The files of one prepared image: written so that a broken run leaves nothing that looks whole.

The only place where a pickle is made, for nnssl wants its properties in one: a dictionary of numbers. None is opened.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.formats.nnssl.folders import MASK_FILES
from viewalign.formats.nnssl.preparing import PreparedImage
from viewalign.volumes.layout import beside, compress, write_atomic, write_json

_ARRAYS = (".b2nd", *MASK_FILES.values())


def write_image(root: Path, place: str, image: PreparedImage, whose: dict[str, Any]) -> None:
    """Write voxels, masks and properties, and last the JSON that marks the image as done.

    Masks are float32 as nnssl's are, each under its own name.

    Args:
        root: `<plans>_<configuration>`.
        place: from `folders.image_place`.
        image: what to write.
        whose: ids and the like, for the JSON.
    """
    forget_image(root, place)
    contents = {".b2nd": compress(image.array[None]), ".pkl": pickle.dumps(image.pickled, protocol=4)}
    for kind, mask in image.masks.items():
        contents[MASK_FILES[kind]] = compress(mask[None].astype(np.float32))
    for suffix, content in contents.items():
        write_atomic(beside(root, place, suffix), content)
    files = {suffix: len(content) for suffix, content in sorted(contents.items())}
    write_json(beside(root, place, ".json"), {**whose, **image.facts, "files": files})


def forget_image(root: Path, place: str) -> None:
    """Remove an image, its mark first."""
    for suffix in (".json", ".pkl", *_ARRAYS):
        beside(root, place, suffix).unlink(missing_ok=True)
