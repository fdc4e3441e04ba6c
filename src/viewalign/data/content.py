"""What the voxels of an image say about it: whether it is a label map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FEW_VALUES = 3
"""An image of this many distinct values, or fewer, is a mask."""
_MANY_VALUES = 512
"""No label map has more structures than this."""
_EQUAL_NEIGHBOURS = 0.5
"""Share of neighbouring voxels inside structures that are equal in a label map."""


def label_map_reason(voxels: NDArray[np.float32]) -> str | None:
    """Say why an image looks like a label map, or None if it does not.

    A label map consists of few distinct whole numbers, and neighbours inside its structures are equal. Neighbours are
    compared along the last axis, in about 64 planes; pairs in which both have the most frequent value, the background,
    are not counted. In 14 head label maps of 53 structures and in labels of hippocampi and hearts the share of equal
    pairs was at least 0.75; in 89 MR and CT images of whole numbers it was at most 0.28.

    Args:
        voxels: (D, H, W).
    """
    planes = voxels[:: max(1, len(voxels) // 64)]
    if np.any(planes != np.rint(planes)):
        return None
    values, counts = np.unique(planes, return_counts=True)
    background = values[np.argmax(counts)]
    if np.count_nonzero((planes != background).any(axis=(1, 2))) < 2:
        return None  # its content lies in one slice, which is reported as such
    if len(values) <= _FEW_VALUES:
        return f"it has {len(values)} distinct values, like a mask"
    if len(values) > _MANY_VALUES:
        return None
    left, right = planes[..., :-1], planes[..., 1:]
    inside = (left != background) | (right != background)
    equal = np.count_nonzero(inside & (left == right)) / max(1, int(np.count_nonzero(inside)))
    if equal < _EQUAL_NEIGHBOURS:
        return None
    return f"it has {len(values)} distinct whole numbers in regions of equal values, like a label map"
