"""One image's way into the store: orient → crop → resample → normalise. No files are written here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import RefusedImageError
from viewalign.volumes.headers import MAX_VOXELS, Triple
from viewalign.volumes.itk import sitk
from viewalign.volumes.orientation import orientation_code, reorientation_to_lps
from viewalign.volumes.reading import Volume, voxel_to_world
from viewalign.volumes.recipe import Normalisation, PrepareSettings
from viewalign.volumes.resampling import Shape, resample, resample_labels, resampled_geometry, resampled_shape

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass
class Prepared:
    """What goes into the store for one image.

    Attributes:
        array: (D, H, W) in LPS, in the number type of the settings.
        properties: geometry, history and statistics, ready for JSON.
        masks: uint8 (D, H, W) on the same voxels, by kind (`anonymisation`, `anatomy`).
    """

    array: NDArray[np.floating[Any]]
    properties: dict[str, Any]
    masks: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


def prepare_volume(
    volume: Volume, settings: PrepareSettings, masks: dict[str, NDArray[np.uint8]] | None = None
) -> Prepared:
    """Orient, crop, resample and normalise one volume; its masks follow the same way with nearest neighbour.

    Args:
        volume: as read.
        settings: spacing, normalisation, number type.
        masks: uint8 arrays on the voxels of `volume`, by kind.

    Raises:
        RefusedImageError: less than two slices of content, a size beyond the limit after resampling, or no contrast.
    """
    turn = reorientation_to_lps(volume.direction)
    spacing, origin, direction = _turned_geometry(volume, turn.axes, turn.flips)
    turned: NDArray[np.float32] = turn.apply(volume.array)
    box = content_box(turned)
    cropped = turned[_slices(box)]
    start = np.array([*(low for low, _ in box), 1.0])
    x, y, z = (float(value) for value in (voxel_to_world(spacing, origin, direction) @ start)[:3])
    old = _shape(cropped)
    new = resampled_shape(old, spacing, settings.spacing) if settings.spacing else old
    _check_new_shape(new)
    spacing, origin = resampled_geometry(old, spacing, (x, y, z), direction, new)
    array = resample(cropped, new)
    mean, std = normalise(array, settings.normalise)
    stored = np.ascontiguousarray(array, dtype=settings.dtype)
    if not np.isfinite([stored.min(), stored.max()]).all():
        raise RefusedImageError(f"its values do not fit into {settings.dtype}")
    properties = {
        "shape": list(stored.shape),
        "spacing": list(spacing),
        "origin": list(origin),
        "direction": direction.tolist(),
        "original_shape": list(volume.array.shape),
        "original_spacing": list(volume.spacing),
        "original_origin": list(volume.origin),
        "original_direction": np.asarray(volume.direction).tolist(),
        "original_orientation": orientation_code(volume.direction),
        "axes": list(turn.axes),
        "flips": list(turn.flips),
        "crop_box": [list(pair) for pair in box],
        "mean": mean,
        "std": std,
        "foreground_threshold": otsu_threshold(array),
        "filled_voxels": volume.filled,
        "checksum": hashlib.sha256(stored.data).hexdigest(),
    }
    kept = {kind: _prepared_mask(turn.apply(mask)[_slices(box)], new) for kind, mask in (masks or {}).items()}
    return Prepared(stored, properties, kept)


def content_box(array: NDArray[np.generic]) -> Box:
    """Return the smallest box (start, stop) per axis that holds every non-zero voxel.

    Raises:
        RefusedImageError: all voxels are zero, or all content lies in one slice.
    """
    # any(axis) over the whole array is slow on the strided axes; one pass over planes is not
    planes = np.array([plane.any() for plane in array])
    if not planes.any():
        raise RefusedImageError("all voxels are zero")
    area = np.zeros(array.shape[1:], dtype=bool)
    for plane in array:
        area |= plane != 0
    ends = [np.flatnonzero(line)[[0, -1]] for line in (planes, area.any(axis=1), area.any(axis=0))]
    box = [(int(first), int(last) + 1) for first, last in ends]
    if any(stop - start < 2 for start, stop in box):
        raise RefusedImageError("all its non-zero voxels lie in one slice")
    return box[0], box[1], box[2]


def normalise(array: NDArray[np.float32], how: Normalisation) -> tuple[float, float]:
    """Normalise in place and return the mean and the deviation (population, float64) that were taken out.

    Raises:
        RefusedImageError: no contrast to normalise.
    """
    if how == "none":
        return 0.0, 1.0
    mean, std = _moments(array, nonzero=how == "foreground")
    if not np.isfinite([mean, std]).all():
        raise RefusedImageError("its values are too large to be normalised")
    if std <= 1e-6 * max(abs(mean), 1e-30):
        raise RefusedImageError(f"it has no contrast: its content is constant at {mean:g}")
    array -= np.float32(mean)
    array /= np.float32(std)
    return mean, std


def otsu_threshold(array: NDArray[np.float32]) -> float:
    """Return Otsu's threshold (128 bins) between background and foreground, in the units of `array`."""
    sampled = array[tuple(slice(None, None, max(1, n // 128)) for n in array.shape)]  # 2 million voxels are plenty
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(np.ascontiguousarray(sampled)))
    return float(otsu.GetThreshold())


def _moments(array: NDArray[np.float32], nonzero: bool) -> tuple[float, float]:
    """Return mean and population deviation in two passes over planes, so that no float64 copy of all is made."""

    def values(plane: NDArray[np.float32]) -> NDArray[np.float64]:
        return (plane[plane != 0] if nonzero else plane.ravel()).astype(np.float64)

    count = int(np.count_nonzero(array)) if nonzero else array.size
    if count == 0:
        return 0.0, 0.0
    mean = sum(float(values(plane).sum()) for plane in array) / count
    squares = sum(float(np.square(values(plane) - mean).sum()) for plane in array)
    return mean, float(np.sqrt(squares / count))


def _turned_geometry(
    volume: Volume, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> tuple[Triple, Triple, NDArray[np.float64]]:
    spacing = tuple(float(volume.spacing[axis]) for axis in axes)
    columns = [(-1.0 if flip else 1.0) * volume.direction[:, 2 - axis] for axis, flip in zip(axes, flips, strict=True)]
    direction = np.stack(columns[::-1], axis=1)
    corner = np.array([0.0, 0.0, 0.0, 1.0])
    for axis, flip in zip(axes, flips, strict=True):
        corner[axis] = volume.array.shape[axis] - 1 if flip else 0
    x, y, z = (voxel_to_world(volume.spacing, volume.origin, volume.direction) @ corner)[:3]
    return (spacing[0], spacing[1], spacing[2]), (float(x), float(y), float(z)), direction


def _check_new_shape(shape: Shape) -> None:
    named = "×".join(map(str, shape))
    if min(shape) < 2:
        raise RefusedImageError(f"nothing but one slice would be left after resampling ({named})")
    if int(np.prod(shape, dtype=object)) > MAX_VOXELS:
        raise RefusedImageError(f"it would have {named} voxels after resampling; the limit is {MAX_VOXELS:,}")


def _prepared_mask(cropped: NDArray[np.generic], new: Shape) -> NDArray[np.uint8]:
    return np.ascontiguousarray(resample_labels(cropped.astype(np.uint8), new))


def _slices(box: Box) -> tuple[slice, slice, slice]:
    return slice(*box[0]), slice(*box[1]), slice(*box[2])


def _shape(array: NDArray[np.generic]) -> Shape:
    return array.shape[0], array.shape[1], array.shape[2]
