"""Resampling as nnssl and nnU-Net do it: cubic splines, and across thick slices the nearest slice.

Voxels are taken as cells: the outer faces stay, a new voxel's centre is `(i + ½)·old/new − ½`, edge values hold beyond
the outermost centres, and results keep within the range of the values they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError

Shape = tuple[int, int, int]
_THICK = 3.0
_TIE = 1e-5


def thick_axis(current: Sequence[float], target: Sequence[float], force: bool | None = None) -> int | None:
    """Return the axis along which slices are thick: over three times the smallest voxel size, and alone in that.

    Args:
        current: voxel size in mm before.
        target: and after; judged where the image's own slices are not thick.
        force: True treats the axis of the largest size as thick whatever the ratio, False none.
    """
    if force is False:
        return None
    for spacing in (current, target):
        if force or max(spacing) / min(spacing) > _THICK:
            largest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return largest[0] if len(largest) == 1 else None
    return None


def resample_image(
    array: NDArray[np.float32], new_shape: Shape, thick: int | None = None, order: int = 3
) -> NDArray[np.float32]:
    """Resample an image (Z, Y, X) with splines of an order; along the axis `thick` the nearest slice is taken.

    Raises:
        UserError: SciPy is not installed.
    """
    if array.shape == new_shape:
        return np.array(array, dtype=np.float32, order="C")
    if thick is None:
        return _zoom(array, new_shape, order)
    return _by_slice(array, new_shape, thick, lambda plane, shape: _zoom(plane, shape, order))


def resample_mask(
    labels: NDArray[np.uint8], new_shape: Shape, thick: int | None = None, order: int = 1
) -> NDArray[np.uint8]:
    """Resample labels (Z, Y, X): each label's indicator is interpolated and the largest wins, on a tie the nearest.

    Raises:
        UserError: SciPy is not installed.
    """
    if labels.shape == new_shape:
        return np.array(labels, order="C")
    if thick is None:
        return _zoom_labels(labels, new_shape, order)
    return _by_slice(labels, new_shape, thick, lambda plane, shape: _zoom_labels(plane, shape, order))


def _by_slice(array: NDArray[Any], new_shape: Shape, thick: int, resize: Any) -> NDArray[Any]:
    """Resize slice by slice those slices that are the nearest to some new one."""
    slices = np.moveaxis(array, thick, 0)
    depth = new_shape[thick]
    plane = tuple(n for axis, n in enumerate(new_shape) if axis != thick)
    centres = (np.arange(depth) + 0.5) * (len(slices) / depth)
    nearest = np.minimum(np.floor(centres).astype(int), len(slices) - 1)
    result = np.empty((depth, *plane), dtype=array.dtype)
    for k in np.unique(nearest):
        result[nearest == k] = resize(slices[k], plane)
    return np.ascontiguousarray(np.moveaxis(result, 0, thick))


def _zoom(array: NDArray[Any], new_shape: tuple[int, ...], order: int) -> NDArray[np.float32]:
    if array.shape == new_shape:
        return np.asarray(array, dtype=np.float32)
    factors = [new / old for old, new in zip(array.shape, new_shape, strict=True)]
    result: NDArray[np.float32] = _ndimage().zoom(
        array, factors, output=np.float32, order=order, mode="nearest", grid_mode=True
    )
    return np.clip(result, array.min(), array.max(), out=result)


def _zoom_labels(labels: NDArray[np.uint8], new_shape: tuple[int, ...], order: int) -> NDArray[np.uint8]:
    nearest = _zoom(labels, new_shape, 0).astype(np.uint8)
    result, best = nearest.copy(), np.full(new_shape, -1.0, dtype=np.float32)
    for label in np.unique(labels):
        score = _zoom((labels == label).astype(np.float32), new_shape, order)
        wins = (score > best + _TIE) | ((score >= best - _TIE) & (nearest == label))
        result[wins] = label
        np.maximum(best, score, out=best)
    return result


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise UserError("Resampling as nnssl does needs SciPy: pip install 'viewalign[nnssl]'.") from None
    return ndimage
