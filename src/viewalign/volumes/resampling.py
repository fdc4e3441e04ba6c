"""Resample an array (D, H, W) to another voxel size without moving it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from viewalign.volumes.headers import Triple
from viewalign.volumes.reading import voxel_to_world

Shape = tuple[int, int, int]


def resampled_shape(shape: Shape, spacing: Triple, target: Triple) -> Shape:
    """Return the voxel counts nearest to `target` (mm) for the same extent; at least 1 along each axis."""
    d, h, w = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True))
    return d, h, w


def resampled_geometry(
    shape: Shape, spacing: Triple, origin: Triple, direction: NDArray[np.float64], new_shape: Shape
) -> tuple[Triple, Triple]:
    """Return the true voxel size and the origin after resampling to `new_shape`.

    The outer faces of the volume stay where they are, so voxel 0 of the new grid lies at index `(old/new − 1)/2` of the
    old one.
    """
    ratio = [old / new for old, new in zip(shape, new_shape, strict=True)]
    first = np.array([*((r - 1.0) / 2.0 for r in ratio), 1.0])
    x, y, z = (float(value) for value in (voxel_to_world(spacing, origin, direction) @ first)[:3])
    sizes = [size * r for size, r in zip(spacing, ratio, strict=True)]
    return (sizes[0], sizes[1], sizes[2]), (x, y, z)


def resample(array: NDArray[np.float32], new_shape: Shape) -> NDArray[np.float32]:
    """Return a new array, resampled trilinearly; beyond the outermost voxel centres the edge value holds.

    The same as torch's `interpolate(mode="trilinear", align_corners=False)`, plane by plane: no temporary is larger
    than a plane, and a worker needs no torch, which would cost it 500 MB and three seconds.
    """
    if array.shape == new_shape:
        return np.array(array, order="C")
    depth, rows, columns = (_taps(old, new) for old, new in zip(array.shape, new_shape, strict=True))
    result = np.empty(new_shape, dtype=np.float32)
    for k in range(new_shape[0]):
        plane = _blend(array[depth.low[k]], array[depth.high[k]], depth.weight[k])
        if array.shape[1] != new_shape[1]:
            plane = _blend(plane[rows.low], plane[rows.high], rows.weight[:, None])
        if array.shape[2] != new_shape[2]:
            plane = _blend(plane.take(columns.low, axis=1), plane.take(columns.high, axis=1), columns.weight)
        result[k] = plane
    return result


class _Taps(NamedTuple):
    """For each new voxel along an axis: the two old voxels it lies between and the share of the second."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]


def _taps(old: int, new: int) -> _Taps:
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0.0, old - 1.0)
    low = place.astype(np.intp)
    return _Taps(low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32))


def _blend(
    first: NDArray[np.float32], second: NDArray[np.float32], share: NDArray[np.float32] | np.float32
) -> NDArray[np.float32]:
    mixed = second - first
    mixed *= share
    mixed += first
    return mixed


def resample_labels(labels: NDArray[np.uint8], new_shape: Shape) -> NDArray[np.uint8]:
    """Resample labels: each new voxel takes the label of the old voxel its centre lies in."""
    for axis, (old, new) in enumerate(zip(labels.shape, new_shape, strict=True)):
        centres = (np.arange(new) + 0.5) * (old / new)
        labels = np.take(labels, np.minimum(centres.astype(np.intp), old - 1), axis=axis)
    return labels
