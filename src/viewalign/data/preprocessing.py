"""Preprocessing of one image: orient, crop, resample, normalise. No files are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.content import CleanValues, clean_values, empty_end, lattice, otsu_threshold
from viewalign.data.geometry import (
    Shape,
    orientation_code,
    reorientation_to_lps,
    resample,
    resample_labels,
    resampled_geometry,
    resampled_shape,
)
from viewalign.data.image_fingerprint import fingerprint_of, fingerprint_text
from viewalign.data.quantization import Quantization, quantize
from viewalign.data.readers.files import Volume, position_of, voxel_to_world
from viewalign.data.readers.headers import MAX_VOXELS, Triple
from viewalign.data.settings import Normalisation, PrepareSettings
from viewalign.errors import EmptyImageError, ExcludedImageError

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass
class Prepared:
    """A preprocessed image.

    Attributes:
        array: (D, H, W) in LPS, or (C, D, H, W) of several frames, in the number type of the settings.
        properties: geometry, history and statistics, ready for JSON.
        masks: whole numbers (D, H, W) on the same voxels, by kind (`anonymisation`, `anatomy`).
    """

    array: NDArray[Any]
    properties: dict[str, Any]
    masks: dict[str, NDArray[Any]] = field(default_factory=dict)


def prepare_volume(
    volume: Volume,
    settings: PrepareSettings,
    masks: dict[str, NDArray[Any]] | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Prepared:
    """Orient, crop, resample and normalise one volume; masks are resampled by nearest neighbour.

    Args:
        volume: as read.
        settings: spacing, interpolation, normalisation, number type.
        masks: arrays of whole numbers on the voxels of `volume`, by kind; they keep their number type.
        max_voxels: exclude larger images after resampling.

    Raises:
        ExcludedImageError: less than two slices of content, a size beyond the limit after resampling, or no contrast.
    """
    prepared = prepare_channels([volume], settings, masks, max_voxels)
    prepared.array = prepared.array[0]
    return prepared


def prepare_channels(
    volumes: Sequence[Volume],
    settings: PrepareSettings,
    masks: dict[str, NDArray[Any]] | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Prepared:
    """Prepare frames that share their voxels as the channels of one image, each normalised separately.

    They are cropped to the region where any is non-zero. Arguments and errors are those of `prepare_volume`.
    """
    first = volumes[0]
    turn = reorientation_to_lps(first.direction)
    spacing, origin, direction = _turned_geometry(first, turn.axes, turn.flips)
    turned = [turn.apply(volume.array) for volume in volumes]
    box = content_box(*turned)
    cropped = [array[_slices(box)] for array in turned]
    origin = position_of((low for low, _ in box), spacing, origin, direction)
    old = _shape(cropped[0])
    new = resampled_shape(old, spacing, settings.spacing) if settings.spacing else old
    _check_new_shape(old, new, len(volumes), max_voxels)
    place = voxel_to_world(spacing, origin, direction)
    spacing, origin = resampled_geometry(old, spacing, origin, direction, new)
    channels = [_prepare_voxels(array, place, new, settings) for array in cropped]
    array = channels[0].array[None] if len(channels) == 1 else np.stack([channel.array for channel in channels])
    properties = {
        "shape": list(new),
        "channels": len(channels),
        "spacing": list(spacing),
        "origin": list(origin),
        "direction": direction.tolist(),
        "original_shape": list(first.array.shape),
        "original_spacing": list(first.spacing),
        "original_origin": list(first.origin),
        "original_direction": np.asarray(first.direction).tolist(),
        "original_orientation": orientation_code(first.direction),
        "axes": list(turn.axes),
        "flips": list(turn.flips),
        "crop_box": [list(pair) for pair in box],
        **_statistics(channels),
        "filled_voxels": sum(volume.filled for volume in volumes),
        "checksum": hashlib.sha256(array.data).hexdigest(),
    }
    if empty := max(empty_end(volume.array) for volume in volumes):
        properties["empty_end"] = empty
    kept = {kind: _prepared_mask(turn.apply(mask)[_slices(box)], new) for kind, mask in (masks or {}).items()}
    return Prepared(array, properties, kept)


@dataclass(frozen=True)
class _Channel:
    """One channel, ready to be stored: its voxels in the store's number type, and how they were computed."""

    array: NDArray[Any]
    mean: float
    std: float
    threshold: float
    packing: Quantization
    clean: CleanValues
    fingerprint: str


def _prepare_voxels(
    cropped: NDArray[np.float32], place: NDArray[np.float64], new: Shape, settings: PrepareSettings
) -> _Channel:
    clean = clean_values(cropped)
    fingerprint = fingerprint_text(fingerprint_of(clean.array, place))
    array = resample(clean.array, new, settings.interpolation)
    measured = None if clean.padding is None else resample_labels((~clean.padding).astype(np.uint8), new) != 0
    mean, std = normalise(array, settings.normalise, settings.percentiles, settings.window, measured)
    packed, packing = quantize(array, settings.dtype)
    threshold = otsu_threshold(array)
    return _Channel(packed, mean, std, threshold, packing, replace(clean, array=packed, padding=None), fingerprint)


def _statistics(channels: Sequence[_Channel]) -> dict[str, Any]:
    """Return what a reader of the store needs; for several channels that of the first."""
    first = channels[0]
    facts: dict[str, Any] = {"mean": first.mean, "std": first.std, "foreground_threshold": first.threshold}
    if len(channels) > 1:
        facts["means"], facts["stds"] = [c.mean for c in channels], [c.std for c in channels]
    if any(channel.clean.padding_value is not None for channel in channels):
        facts["padding_value"] = [channel.clean.padding_value for channel in channels]
    if any(channel.clean.clipped for channel in channels):
        facts["clipped_voxels"] = [channel.clean.clipped for channel in channels]
        facts["clipped_to"] = [channel.clean.limits for channel in channels]
    facts["fingerprint"] = first.fingerprint
    facts["scale"] = [channel.packing.scale for channel in channels]
    facts["offset"] = [channel.packing.offset for channel in channels]
    worst = max(channels, key=lambda channel: channel.packing.largest_error).packing
    facts["storage_error"] = {
        "largest": worst.largest_error,
        "rms": float(np.sqrt(np.mean([channel.packing.rms_error**2 for channel in channels]))),
    }
    return facts


def content_box(*arrays: NDArray[np.generic]) -> Box:
    """Return the smallest box (start, stop) per axis that contains every non-zero voxel of arrays of one shape.

    Raises:
        ExcludedImageError: all voxels are zero, or all content is in one slice.
    """
    # any(axis) over the whole array is slow on the strided axes; one pass over planes is not
    planes = np.zeros(arrays[0].shape[0], dtype=bool)
    area = np.zeros(arrays[0].shape[1:], dtype=bool)
    for array in arrays:
        for k, plane in enumerate(array):
            content = plane != 0
            planes[k] |= content.any()
            area |= content
    if not planes.any():
        raise EmptyImageError
    ends = [np.flatnonzero(line)[[0, -1]] for line in (planes, area.any(axis=1), area.any(axis=0))]
    box = [(int(first), int(last) + 1) for first, last in ends]
    if any(stop - start < 2 for start, stop in box):
        raise ExcludedImageError("all its non-zero voxels are in one slice")
    return box[0], box[1], box[2]


def normalise(
    array: NDArray[np.float32],
    how: Normalisation,
    percentiles: tuple[float, float] = (0.5, 99.5),
    window: tuple[float, float] | None = None,
    measured: NDArray[np.bool_] | None = None,
) -> tuple[float, float]:
    """Normalise in place and return: first a shift (mean), then a factor (deviation).

    Mean and deviation are the population's, in float64. For `window` they are its middle and half its width, so that
    it becomes [−1, 1]. Percentiles are estimated on a regular lattice of about two million voxels. Voxels that are
    false in `measured` are not in any statistic.

    Raises:
        ExcludedImageError: no contrast to normalise.
    """
    if how == "none":
        return 0.0, 1.0
    if how == "window":
        assert window is not None
        np.clip(array, *window, out=array)
        if array.min() == array.max():
            raise ExcludedImageError(f"all its values lie on one side of the window {window[0]:g} to {window[1]:g}")
        mean, std = (window[0] + window[1]) / 2, (window[1] - window[0]) / 2
    else:
        if how == "percentile":
            sample = lattice(array, 128) if measured is None else lattice(array, 128)[lattice(measured, 128)]
            low, high = np.percentile(sample, percentiles)
            np.clip(array, np.float32(low), np.float32(high), out=array)
        mean, std = _moments(array, how == "foreground", measured)
    if not np.isfinite([mean, std]).all():
        raise ExcludedImageError("its values are too large to be normalised")
    if std <= 1e-6 * max(abs(mean), 1e-30):
        raise ExcludedImageError(f"it has no contrast: its content is constant at {mean:g}")
    array -= np.float32(mean)
    array /= np.float32(std)
    return mean, std


def _moments(
    array: NDArray[np.float32], nonzero: bool, measured: NDArray[np.bool_] | None = None
) -> tuple[float, float]:
    """Return mean and population deviation in two passes over planes, so that no float64 copy of all is made."""

    def planes() -> Iterator[NDArray[np.float64]]:
        for number, plane in enumerate(array):
            values = plane.ravel() if measured is None else plane[measured[number]]
            yield (values[values != 0] if nonzero else values).astype(np.float64)

    count = sum(values.size for values in planes()) if nonzero or measured is not None else array.size
    if count == 0:
        return 0.0, 0.0
    mean = sum(float(values.sum()) for values in planes()) / count
    squares = sum(float(np.square(values - mean).sum()) for values in planes())
    return mean, float(np.sqrt(squares / count))


def _turned_geometry(
    volume: Volume, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> tuple[Triple, Triple, NDArray[np.float64]]:
    spacing = tuple(float(volume.spacing[axis]) for axis in axes)
    columns = [(-1.0 if flip else 1.0) * volume.direction[:, 2 - axis] for axis, flip in zip(axes, flips, strict=True)]
    direction = np.stack(columns[::-1], axis=1)
    corner = [0, 0, 0]
    for axis, flip in zip(axes, flips, strict=True):
        corner[axis] = volume.array.shape[axis] - 1 if flip else 0
    origin = position_of(corner, volume.spacing, volume.origin, volume.direction)
    return (spacing[0], spacing[1], spacing[2]), origin, direction


def _check_new_shape(old: Shape, shape: Shape, channels: int, max_voxels: int) -> None:
    named = "×".join(map(str, shape))
    if min(shape) < 2:
        before = "×".join(map(str, old))
        raise ExcludedImageError(
            f"nothing but one slice would be left after resampling ({named} of {before} voxels); set a smaller spacing="
        )
    if int(np.prod(shape, dtype=object)) * channels > max_voxels:
        raise ExcludedImageError(f"it would have {named} voxels after resampling; the limit is {max_voxels:,}")


def _prepared_mask(cropped: NDArray[Any], new: Shape) -> NDArray[Any]:
    whole = cropped if cropped.dtype.kind in "iu" else cropped.astype(np.uint8)
    return np.ascontiguousarray(resample_labels(whole, new))


def _slices(box: Box) -> tuple[slice, slice, slice]:
    return slice(*box[0]), slice(*box[1]), slice(*box[2])


def _shape(array: NDArray[np.generic]) -> Shape:
    return array.shape[0], array.shape[1], array.shape[2]
