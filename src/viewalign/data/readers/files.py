"""Read one file into a volume, or report in a sentence why it cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.catalogue import SeriesSource
from viewalign.data.file_types import NIBABEL_SUFFIXES, suffix_of
from viewalign.data.grids import grid_difference
from viewalign.data.readers import itk, nibabel_files, nifti
from viewalign.data.readers.dicom_voxels import read_voxels as read_dicom_voxels
from viewalign.data.readers.headers import MAX_VOXELS, Header, Triple, header_at
from viewalign.data.readers.itk import itk_messages, itk_reason, sitk
from viewalign.data.readers.locating import located
from viewalign.errors import EmptyImageError, ExcludedImageError

_HIGHEST_LABEL = 2**24  # above which float32 does not distinguish whole numbers
_DAMAGE = ("uncompress failed", "not read completely")


@dataclass(frozen=True)
class Volume:
    """A 3D image with its position in the world.

    Attributes:
        array: float32 (D, H, W), as SimpleITK gives it: the last axis is x.
        spacing: voxel size in mm along (D, H, W).
        origin: centre of voxel (0, 0, 0): (x, y, z) in mm, LPS.
        direction: 3×3; columns are the LPS directions of the x, y and z index.
        filled: number of non-finite voxels that were replaced by 0.
    """

    array: NDArray[np.float32]
    spacing: Triple
    origin: Triple
    direction: NDArray[np.float64]
    filled: int = 0


def voxel_to_world(spacing: Triple, origin: Triple, direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 4×4 matrix from an array index (d, h, w, 1) to (x, y, z, 1) in mm, LPS."""
    matrix = np.eye(4)
    matrix[:3, :3] = (np.asarray(direction, dtype=np.float64) * np.asarray(spacing[::-1]))[:, ::-1]
    matrix[:3, 3] = origin
    return matrix


def position_of(index: Iterable[float], spacing: Triple, origin: Triple, direction: NDArray[np.float64]) -> Triple:
    """Return the position (x, y, z) in mm, LPS, of an array index (d, h, w)."""
    x, y, z = (voxel_to_world(spacing, origin, direction) @ np.array([*index, 1.0]))[:3]
    return float(x), float(y), float(z)


def read_volume(
    path: Path, fill_nonfinite: bool = False, max_voxels: int = MAX_VOXELS, source: SeriesSource | None = None
) -> Volume:
    """Read a file of any supported type, or the DICOM series that a file belongs to.

    Args:
        path: the file; its type follows from its name.
        fill_nonfinite: replace NaN and infinity by 0 instead of excluding the image.
        max_voxels: exclude a header that claims more.
        source: what the catalogue states about its DICOM series.

    Raises:
        ExcludedImageError: the text is the reason, without the file's name.
    """
    with located(path, source, max_voxels) as place:
        header = header_at(place, max_voxels)
        array = _voxels(place.file, header)
    return _volume(array, header, fill_nonfinite)


def read_frames(
    path: Path, fill_nonfinite: bool = False, max_voxels: int = MAX_VOXELS, source: SeriesSource | None = None
) -> list[Volume]:
    """Read the frames of a 4-D NIfTI file, or the single volume of any other file; see `read_volume`.

    Args:
        path: the file.
        fill_nonfinite: replace NaN and infinity by 0 instead of excluding the image.
        max_voxels: exclude a header that claims more, all frames together.
        source: what the catalogue states about its DICOM series.
    """
    with located(path, source, max_voxels) as place:
        header = header_at(place, max_voxels, frames=True)
        if header.frames == 1 or header.nifti is None:
            return [_volume(_voxels(place.file, header), header, fill_nonfinite)]
        # In the file, frames follow each other like further slices.
        x, y, z = header.nifti.dims[:3]
        slices = nifti.read_voxels(place.file, replace(header.nifti, dims=(x, y, z * header.frames)))
    volumes = []
    for number, array in enumerate(slices.reshape(header.frames, *header.shape)):
        try:
            volumes.append(_volume(array, header, fill_nonfinite))
        except ExcludedImageError as exclusion:
            raise ExcludedImageError(f"frame {number}: {exclusion}") from None
    return volumes


def _volume(array: NDArray[np.float32], header: Header, fill_nonfinite: bool) -> Volume:
    filled = _check_finite(array, fill_nonfinite)
    _check_content(array)
    return Volume(array, header.spacing, header.origin, header.direction, filled)


def read_mask(path: Path, like: Volume) -> NDArray[np.uint8]:
    """Read a mask on the voxels of `like`, as uint8 (D, H, W); values above 255 are 255. Errors as in `read_labels`."""
    mask: NDArray[np.uint8] = np.minimum(read_labels(path, like), 255).astype(np.uint8)
    return mask


def read_labels(path: Path, like: Volume) -> NDArray[np.integer[Any]]:
    """Read a label map on the voxels of `like`: (D, H, W), uint8, or int32 if it has labels above 255.

    Raises:
        ExcludedImageError: unreadable, or on another voxel grid than the image (`grid_difference`).
    """
    with located(path, None, MAX_VOXELS) as place:
        header = header_at(place)
        if header.shape != like.array.shape:
            sizes = " and ".join("×".join(map(str, shape)) for shape in (header.shape, like.array.shape))
            raise ExcludedImageError(f"the mask {path.name} and the image have different sizes ({sizes})")
        if difference := grid_difference(Volume(like.array, header.spacing, header.origin, header.direction), like):
            raise ExcludedImageError(
                f"the mask {path.name} is on another voxel grid than the image: {difference}; resample it to the image"
            )
        labels = _voxels(place.file, header)
    labels = np.clip(np.rint(np.nan_to_num(labels, posinf=255, neginf=0)), 0, _HIGHEST_LABEL)
    return labels.astype(np.uint8 if labels.max() <= 255 else np.int32)


def _voxels(path: Path, header: Header) -> NDArray[np.float32]:
    if header.nifti is not None:
        return nifti.read_voxels(path, header.nifti)
    if header.dicom is not None:
        return read_dicom_voxels(header.dicom)
    if suffix_of(path.name) in NIBABEL_SUFFIXES:
        return nibabel_files.read_voxels(path).reshape(header.shape)
    if suffix_of(path.name) in (".nrrd", ".nhdr"):
        itk.check_stream(path)
    try:
        with itk_messages() as messages:
            image = sitk.ReadImage(str(path))
    except (RuntimeError, MemoryError) as error:
        reason = itk_reason(error) if isinstance(error, RuntimeError) else "not enough memory"
        damaged = next((text for text in messages if any(sign in text.lower() for sign in _DAMAGE)), None)
        raise ExcludedImageError(f"the file is damaged or truncated: {damaged or reason}") from None
    if any(sign in text.lower() for text in messages for sign in _DAMAGE):
        raise ExcludedImageError("the file is damaged: its compressed voxels cannot be unpacked")
    return np.array(nifti.as_float32(sitk.GetArrayViewFromImage(image))).reshape(header.shape)


def _check_finite(array: NDArray[np.float32], fill: bool) -> int:
    """Reject or replace NaN and infinity slice by slice, without a mask of the whole volume."""
    bad = sum(int(plane.size - np.count_nonzero(np.isfinite(plane))) for plane in array)
    if bad and not fill:
        nans = sum(int(np.count_nonzero(np.isnan(plane))) for plane in array)
        what = "NaN" if nans == bad else "infinite" if nans == 0 else "NaN or infinite"
        raise ExcludedImageError(
            f"{bad:,} of {array.size:,} voxels are {what} (0 is written there by a store prepared with "
            "fill_nonfinite=true, and by encoders pretrained on one)"
        )
    if bad:
        np.nan_to_num(array, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return bad


def _check_content(array: NDArray[np.float32]) -> None:
    low, high = float(array.min()), float(array.max())
    if low == high:
        if low == 0:
            raise EmptyImageError
        raise ExcludedImageError(f"the image is constant: all voxels are {low:g}")
