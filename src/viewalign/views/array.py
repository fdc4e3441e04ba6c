"""Views of an array in memory, for looking at the geometry, for tests, and for anybody who wants to check it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from viewalign.views.batch import ViewBatch
from viewalign.views.build import build_views
from viewalign.views.drawing import Drawing
from viewalign.views.photometric import Photometrics
from viewalign.views.samples import SampleReader

Size = tuple[int, int, int]


class ArraySource:
    """One array (C, D, H, W) in the place of a store."""

    def __init__(self, array: ArrayLike, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        values = np.asarray(array, dtype=np.float32)
        self._array = values[None] if values.ndim == 3 else values
        self._spacing = spacing

    def __len__(self) -> int:
        """Return 1."""
        return 1

    def shape(self, k: int) -> Size:  # noqa: ARG002
        """Return (D, H, W)."""
        d, h, w = self._array.shape[1:]
        return (d, h, w)

    def spacing(self, k: int) -> tuple[float, float, float]:  # noqa: ARG002
        """Return the voxel size in mm."""
        return self._spacing

    def foreground_threshold(self, k: int) -> float:  # noqa: ARG002
        """Return a value that every voxel exceeds: all of the array is foreground."""
        return -np.inf

    def read(self, k: int, start: Size, stop: Size) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the voxels of a box."""
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.ascontiguousarray(self._array[(slice(None), *box)])

    def read_mask(self, k: int, kind: str, start: Size, stop: Size) -> None:
        """Return None: an array has no masks."""


def draw_views(
    array: ArrayLike,
    size: Size,
    seed: int = 0,
    drawing: Drawing | None = None,
    photometrics: Photometrics | None = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> ViewBatch:
    """Draw a pair of views from one array.

    Args:
        array: (D, H, W) or (C, D, H, W).
        size: (d, h, w) of a view in voxels.
        seed: another seed gives another pair.
        drawing: which geometry may be drawn; None takes the published ranges.
        photometrics: which changes of intensity may be drawn; None draws none.
        spacing: the array's voxel size in mm.

    Returns:
        A `ViewBatch` of two views of one volume.
    """
    source = ArraySource(array, spacing)
    alone = np.zeros(1, dtype=np.int64)
    reader = SampleReader(source, alone, alone, drawing or Drawing(size=size), 1, seed)
    return build_views([reader[0]], size, photometrics, seed=seed)
