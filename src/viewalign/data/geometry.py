"""Converts an image's axes to one orientation, and back.

The stored frame is LPS: indices along W grow towards the patient's left, along H towards posterior, along D towards
superior. Axes are only permuted and flipped, so no voxel value changes and an oblique image stays oblique.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from viewalign.data.readers.files import position_of
from viewalign.data.readers.headers import Triple
from viewalign.data.settings import Interpolation

Number = TypeVar("Number", bound=np.generic)
Direction = NDArray[np.float64]
_POSITIVE = "LPS"
_NEGATIVE = "RAI"


@dataclass(frozen=True)
class Reorientation:
    """Conversion from a file's array axes to the stored ones.

    Attributes:
        axes: stored array axis a is the file's array axis `axes[a]`, as in `np.transpose`.
        flips: after that, stored axis a is reversed where `flips[a]`.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Number]) -> NDArray[Number]:
        """Return a view of a file's array (D, H, W) in the stored frame."""
        return np.flip(np.transpose(array, self.axes), self._flipped())

    def invert(self, array: NDArray[Number]) -> NDArray[Number]:
        """Return a view of a stored-frame array (D, H, W) in the frame of its file: the inverse of `apply`."""
        return np.transpose(np.flip(array, self._flipped()), np.argsort(self.axes))

    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis, flip in enumerate(self.flips) if flip)


def orientation_code(direction: Direction) -> str:
    """Return the three letters, e.g. `LPS`, towards which a file's x, y and z indices grow.

    Args:
        direction: 3×3, column i the world direction (LPS) of index axis i, in the order x, y, z.
    """
    worlds = _nearest_world_axes(direction)
    return "".join(
        (_POSITIVE if direction[world, index] >= 0 else _NEGATIVE)[world] for index, world in enumerate(worlds)
    )


def reorientation_to_lps(direction: Direction) -> Reorientation:
    """Return the permutation and flips that convert an image with this direction (3×3; x, y, z) to LPS."""
    worlds = _nearest_world_axes(direction)
    axes, flips = [], []
    for stored in range(3):
        index = worlds.index(2 - stored)
        axes.append(2 - index)
        flips.append(bool(direction[2 - stored, index] < 0))
    return Reorientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def _nearest_world_axes(direction: Direction) -> tuple[int, ...]:
    """Return for x, y, z the world axis each runs along: the assignment with the largest sum of cosines."""
    return max(permutations(range(3)), key=lambda worlds: sum(abs(direction[w, i]) for i, w in enumerate(worlds)))


Shape = tuple[int, int, int]


def resampled_shape(shape: Shape, spacing: Triple, target: Triple) -> Shape:
    """Return the voxel counts nearest to `target` (mm) for the same extent; at least 1 along each axis."""
    d, h, w = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, target, strict=True))
    return d, h, w


def resampled_geometry(
    shape: Shape, spacing: Triple, origin: Triple, direction: NDArray[np.float64], new_shape: Shape
) -> tuple[Triple, Triple]:
    """Return the true voxel size and the origin after resampling to `new_shape`.

    The outer faces of the volume are kept, so that voxel 0 of the new grid is at index `(old/new − 1)/2` of the
    old one.
    """
    ratio = [old / new for old, new in zip(shape, new_shape, strict=True)]
    first = position_of(((r - 1.0) / 2.0 for r in ratio), spacing, origin, direction)
    sizes = [size * r for size, r in zip(spacing, ratio, strict=True)]
    return (sizes[0], sizes[1], sizes[2]), first


def resample(array: NDArray[np.float32], new_shape: Shape, how: Interpolation = "linear") -> NDArray[np.float32]:
    """Return a new array, resampled trilinearly or by cubic B-splines; edge values are repeated outside."""
    if array.shape == new_shape:
        return np.array(array, order="C")
    return _cubic(array, new_shape) if how == "cubic" else _linear(array, new_shape)


def _linear(array: NDArray[np.float32], new_shape: Shape) -> NDArray[np.float32]:
    """Resample trilinearly.

    Equal to torch's `interpolate(mode="trilinear", align_corners=False)`, plane by plane: no temporary is larger
    than a plane, and a worker needs no torch, which would take 500 MB and three seconds.
    """
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
    """Return for each new voxel along an axis its two neighbouring old voxels and the weight of the second."""

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


_ROWS = 64  # rows of the operator multiplied at a time: entries far from them are zero and are skipped
_NEGLIGIBLE = 1e-9


def _cubic(array: NDArray[np.float32], new_shape: Shape) -> NDArray[np.float32]:
    """Resample by B-splines of order 3, one matrix product per axis; axes that shrink most come first."""
    result = array
    for axis in sorted(range(3), key=lambda axis: new_shape[axis] / array.shape[axis]):
        if array.shape[axis] != new_shape[axis]:
            result = _along(spline_operator(array.shape[axis], new_shape[axis]), result, axis)
    return np.ascontiguousarray(result)


def _along(operator: NDArray[np.float64], array: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    shape = list(array.shape)
    shape[axis] = len(operator)
    result = np.empty(shape, dtype=np.float32)
    for first in range(0, len(operator), _ROWS):
        rows = operator[first : first + _ROWS]
        used = np.flatnonzero(np.abs(rows).max(axis=0) > _NEGLIGIBLE)
        low, high = int(used[0]), int(used[-1]) + 1
        part = rows[:, low:high].astype(np.float32)
        box = [slice(None)] * 3
        box[axis] = slice(first, first + len(rows))
        source = [slice(None)] * 3
        source[axis] = slice(low, high)
        values = array[tuple(source)]
        if axis == 0:
            flat = np.ascontiguousarray(values).reshape(high - low, -1)
            result[tuple(box)] = (part @ flat).reshape(len(rows), *shape[1:])
        else:
            result[tuple(box)] = part @ values if axis == 1 else values @ part.T
    return result


@lru_cache(maxsize=16)
def spline_operator(old: int, new: int) -> NDArray[np.float64]:
    """Return the matrix (new, old) that resamples a line by its interpolating cubic B-spline, mirrored at the ends.

    A line's coefficients solve a tridiagonal system (Unser, IEEE Signal Processing Magazine 1999, eq. 11); each new
    voxel is a weighted sum of four of them. As one matrix product per axis, it runs at the speed of BLAS.
    """
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0.0, old - 1.0)
    base = np.floor(place).astype(np.intp)
    t = place - base
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    from_coefficients, sampled = np.zeros((new, old)), np.zeros((old, old))
    for k in range(4):
        np.add.at(from_coefficients, (np.arange(new), _mirrored(base + k - 1, old)), weights[k])
    for k, weight in enumerate((1 / 6, 4 / 6, 1 / 6)):
        np.add.at(sampled, (np.arange(old), _mirrored(np.arange(old) + k - 1, old)), weight)
    return np.asarray(np.linalg.solve(sampled.T, from_coefficients.T).T)


def _mirrored(index: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Reflect indices about the first and last voxel centre."""
    period = max(2 * (size - 1), 1)
    folded = np.abs(index) % period
    return np.asarray(np.minimum(folded, period - folded))


def resample_labels(labels: NDArray[Any], new_shape: Shape) -> NDArray[Any]:
    """Resample labels: each new voxel gets the label of the old voxel that contains its centre."""
    for axis, (old, new) in enumerate(zip(labels.shape, new_shape, strict=True)):
        centres = (np.arange(new) + 0.5) * (old / new)
        labels = np.take(labels, np.minimum(centres.astype(np.intp), old - 1), axis=axis)
    return labels
