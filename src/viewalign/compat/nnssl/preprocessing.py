"""Resampling as in nnssl and nnU-Net: cubic splines, and nearest neighbour across thick slices.

Voxels are cells: outer faces are kept, the centre of a new voxel is `(i + ½)·old/new − ½`, border values are repeated
beyond the outermost centres, and results are clipped to the range of the input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.compat.nnssl.plans import Configuration, Interpolation
from viewalign.data.content import otsu_threshold
from viewalign.data.geometry import resampled_shape
from viewalign.data.preprocessing import Box, content_box, normalise
from viewalign.data.readers.files import Volume
from viewalign.data.readers.headers import MAX_VOXELS, Triple
from viewalign.errors import ExcludedImageError
from viewalign.utils.extras import missing

Shape = tuple[int, int, int]
_THICK = 3.0
_TIE = 1e-5


def thick_axis(current: Sequence[float], target: Sequence[float], force: bool | None = None) -> int | None:
    """Return the axis of thick slices: the only one with over three times the smallest voxel size.

    Args:
        current: voxel size in mm before resampling.
        target: voxel size after resampling, used if `current` has no thick slices.
        force: True uses the axis of the largest size regardless of the ratio, False none.
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
    """Resample an image (Z, Y, X) by splines of `order`, and by nearest neighbour along the axis `thick`.

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
    """Resample labels (Z, Y, X) by the largest interpolated indicator; on a tie, the nearest label.

    Raises:
        UserError: SciPy is not installed.
    """
    if labels.shape == new_shape:
        return np.array(labels, order="C")
    if thick is None:
        return _zoom_labels(labels, new_shape, order)
    return _by_slice(labels, new_shape, thick, lambda plane, shape: _zoom_labels(plane, shape, order))


def _by_slice(array: NDArray[Any], new_shape: Shape, thick: int, resize: Any) -> NDArray[Any]:
    """Resize the slices that are nearest to a new slice."""
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
        raise missing("Resampling as in nnssl needs SciPy", "nnssl") from None
    return ndimage


@dataclass(frozen=True)
class PreparedImage:
    """A prepared image.

    Attributes:
        array: float32 (Z, Y, X), axes in the order of the plans.
        masks: uint8 on the same grid, by kind (`anonymisation`, `anatomy`).
        pickled: nnssl's properties for `<image>.pkl`.
        facts: our properties for `<image>.json`.
    """

    array: NDArray[np.float32]
    masks: dict[str, NDArray[np.uint8]]
    pickled: dict[str, Any]
    facts: dict[str, Any]


def prepare_image(
    volume: Volume,
    masks: Mapping[str, NDArray[np.uint8]],
    how: Configuration,
    forward: tuple[int, int, int],
    max_voxels: int = MAX_VOXELS,
) -> PreparedImage:
    """Prepare one image and its masks.

    Args:
        volume: as read.
        masks: on the grid of `volume`, by kind.
        how: a configuration of the plans.
        forward: axes of the file in the stored order.
        max_voxels: maximum number of voxels after resampling.

    Raises:
        ExcludedImageError: nothing to crop to, no contrast, or too few or too many voxels after resampling.
    """
    permuted = volume.array.transpose(forward)
    spacing = _permuted(volume.spacing, forward)
    box = content_box(permuted)
    inside = tuple(slice(*ends) for ends in box)
    array = np.array(permuted[inside], order="C")
    mean, std = normalise(array, "zscore" if how.normalised else "none")
    old = _shape(array)
    new = resampled_shape(old, spacing, how.spacing) if how.spacing else old
    _check_size(new, max_voxels)
    target = how.spacing or spacing
    data, labels = how.resampling_fn_data_kwargs, how.resampling_fn_mask_kwargs
    array = resample_image(array, new, _thick(spacing, target, data), data.order)
    kept = {
        kind: resample_mask(mask.transpose(forward)[inside], new, _thick(spacing, target, labels), labels.order)
        for kind, mask in masks.items()
    }
    facts = {
        "shape": list(new),
        "spacing": [size * n / m for size, n, m in zip(spacing, old, new, strict=True)],
        "foreground_threshold": otsu_threshold(array) if how.normalised else 0.0,
        "original_shape": list(volume.array.shape),
        "original_spacing": list(volume.spacing),
        "original_origin": list(volume.origin),
        "original_direction": np.asarray(volume.direction).tolist(),
        "transpose_forward": list(forward),
        "crop_box": [list(ends) for ends in box],
        "mean": mean,
        "std": std,
    }
    return PreparedImage(array, kept, nnssl_properties(volume, _shape(permuted), box, old), facts)


def nnssl_properties(volume: Volume, before: Shape, box: Box, cropped: Shape) -> dict[str, Any]:
    """Return nnssl's properties of an image as plain values.

    Args:
        volume: as read.
        before: its shape along the transposed axes.
        box: crop box, along the transposed axes.
        cropped: shape after cropping.
    """
    return {
        "sitk_stuff": {
            "spacing": tuple(float(size) for size in volume.spacing[::-1]),
            "origin": tuple(float(place) for place in volume.origin),
            "direction": tuple(float(cosine) for cosine in np.asarray(volume.direction).ravel()),
        },
        "spacing": [float(size) for size in volume.spacing],
        "shape_before_cropping": tuple(before),
        "bbox_used_for_cropping": [list(ends) for ends in box],
        "shape_after_cropping_and_before_resampling": tuple(cropped),
    }


def _check_size(shape: Shape, max_voxels: int) -> None:
    named = "×".join(map(str, shape))
    if min(shape) < 2:
        raise ExcludedImageError(f"only one slice would be left at this voxel size ({named})")
    if int(np.prod(shape, dtype=object)) > max_voxels:
        raise ExcludedImageError(f"it would have {named} voxels at this voxel size; the limit is {max_voxels:,}")


def _thick(spacing: Triple, target: Triple, how: Interpolation) -> int | None:
    return thick_axis(spacing, target, how.force_separate_z)


def _permuted(values: Triple, axes: tuple[int, int, int]) -> Triple:
    first, second, third = (float(values[axis]) for axis in axes)
    return first, second, third


def _shape(array: NDArray[np.generic]) -> Shape:
    return array.shape[0], array.shape[1], array.shape[2]
