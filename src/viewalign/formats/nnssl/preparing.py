"""One image's way into nnssl's layout: transpose → crop → z-score → resample, in nnssl's order.

nnssl does not bring images to a common orientation, and neither does this: axes stay as the file has them, (z, y, x) as
SimpleITK gives them, but for the one transposition of the plans. Masks are stored as they are inside the crop; the −1
that nnssl writes where mask and image are empty is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import RefusedImageError
from viewalign.formats.nnssl.plans import Configuration, Interpolation
from viewalign.formats.nnssl.resampling import Shape, resample_image, resample_mask, thick_axis
from viewalign.volumes.headers import MAX_VOXELS, Triple
from viewalign.volumes.preparing import Box, content_box, normalise, otsu_threshold
from viewalign.volumes.reading import Volume
from viewalign.volumes.resampling import resampled_shape


@dataclass(frozen=True)
class PreparedImage:
    """What is stored of one image.

    Attributes:
        array: float32 (Z, Y, X), axes in the plans' order.
        masks: uint8 on the same voxels, by kind (`anonymisation`, `anatomy`).
        pickled: the properties that nnssl keeps in `<image>.pkl`.
        facts: what we keep in `<image>.json`.
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
        masks: on the voxels of `volume`, by kind.
        how: one configuration of the plans.
        forward: the file's axes in the order of the stored ones.
        max_voxels: refuse an image that would have more after resampling.

    Raises:
        RefusedImageError: nothing to crop to, no contrast, or too few or too many voxels after resampling.
    """
    turned = volume.array.transpose(forward)
    spacing = _permuted(volume.spacing, forward)
    box = content_box(turned)
    inside = tuple(slice(*ends) for ends in box)
    array = np.array(turned[inside], order="C")
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
    return PreparedImage(array, kept, nnssl_properties(volume, _shape(turned), box, old), facts)


def nnssl_properties(volume: Volume, before: Shape, box: Box, cropped: Shape) -> dict[str, Any]:
    """Return what nnssl keeps of an image, in plain numbers, lists and dictionaries.

    Args:
        volume: as read.
        before: its shape along the transposed axes.
        box: what was cropped to, along the transposed axes.
        cropped: the shape after that.
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
        raise RefusedImageError(f"nothing but one slice would be left at this voxel size ({named})")
    if int(np.prod(shape, dtype=object)) > max_voxels:
        raise RefusedImageError(f"it would have {named} voxels at this voxel size; the limit is {max_voxels:,}")


def _thick(spacing: Triple, target: Triple, how: Interpolation) -> int | None:
    return thick_axis(spacing, target, how.force_separate_z)


def _permuted(values: Triple, axes: tuple[int, int, int]) -> Triple:
    first, second, third = (float(values[axis]) for axis in axes)
    return first, second, third


def _shape(array: NDArray[np.generic]) -> Shape:
    return array.shape[0], array.shape[1], array.shape[2]
