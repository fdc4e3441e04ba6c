"""Read and check the header of an image without its voxels.

ITK silently corrects some headers: a negative voxel size of a MetaImage loses its sign. So sizes are checked here as
written in the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign.data.catalogue import SeriesSource
from viewalign.data.file_types import NIBABEL_SUFFIXES, suffix_of
from viewalign.data.readers import itk, nibabel_files, nifti
from viewalign.data.readers.dicom_folders import folder_bytes, folders_of
from viewalign.data.readers.dicom_slices import Frame, has_type
from viewalign.data.readers.dicom_stacks import Stack
from viewalign.data.readers.itk import sitk
from viewalign.data.readers.locating import Location, located
from viewalign.data.readers.nifti_geometry import nifti_geometry
from viewalign.data.readers.units import check_spacing, text_unit, times
from viewalign.errors import ExcludedImageError
from viewalign.utils.io import is_file

Triple = tuple[float, float, float]

MAX_VOXELS = 2 * 1024**3
"""Images that claim more voxels are excluded before anything is allocated."""
_OF_COMPONENTS = range(1004, 1011)
"""Codes of intent of NIfTI whose voxels have components: matrices, displacements, vectors, points, quaternions."""
_MOST_FILES, _LONGEST_LIST = 100_000, 1 << 24
"""Slices of an image in files of their own, and bytes of a header that names them."""
_LABELS = 1002
"""Code of intent of a label map."""
_MAX_DEFLATE = 1032  # no deflate stream unpacks to more than this many times its size
_MAX_SHEAR = 0.05  # largest cosine between two axes, about 3°
_SPACED = re.compile(
    rb"^(?:space directions:(?!(?:\s*none)*\s*$)|spacings:(?!(?:\s*nan)*\s*$)|Element(?:Spacing|Size)\s*=)", re.M | re.I
)
"""A voxel size in the header of a NRRD or MetaImage file."""
_DETACHED = re.compile(rb"^(?:data ?file:|ElementDataFile\s*=)\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Header:
    """The geometry of a file. Arrays are (D, H, W); `origin` and `direction` are (x, y, z) in LPS, as SimpleITK's.

    Attributes:
        shape: voxels along (D, H, W).
        spacing: voxel size in mm along (D, H, W).
        origin: centre of voxel (0, 0, 0) in mm.
        direction: 3×3; columns are the world directions of the x, y and z index.
        bytes_per_voxel: of the file's own number type.
        note: a problem that was accepted, as a sentence, or empty.
        frames: volumes in the file; more than one only if requested.
        labels: whether the file says that it is a label map.
    """

    shape: tuple[int, int, int]
    spacing: Triple
    origin: Triple
    direction: NDArray[np.float64]
    bytes_per_voxel: int
    nifti: nifti.NiftiHeader | None = field(default=None, repr=False)
    dicom: Stack | None = field(default=None, repr=False)
    note: str = ""
    frames: int = 1
    labels: bool = False


class FramesError(ExcludedImageError):
    """A NIfTI file of several frames (4-D) was to be read as one volume; the text is the reason."""


def read_header(
    path: Path, max_voxels: int = MAX_VOXELS, frames: bool = False, source: SeriesSource | None = None
) -> Header:
    """Read and check one header; files of no other type are treated as slices of a DICOM series.

    Args:
        path: the file.
        max_voxels: exclude files that claim more, all frames together.
        frames: accept NIfTI files of several frames (4-D).
        source: what the catalogue states about its DICOM series.

    Raises:
        ExcludedImageError: the file is not a 3D scalar image; the text is the reason.
    """
    try:
        with located(path, source, max_voxels) as place:
            return header_at(place, max_voxels, frames)
    except FramesError as several:
        raise FramesError(f"{several}; frames=true of index takes in NIfTI of several") from None


def header_at(place: Location, max_voxels: int = MAX_VOXELS, frames: bool = False) -> Header:
    """Read and check the header of an image that was located; see `read_header`.

    Raises:
        FramesError: several frames in a NIfTI file, without `frames`.
        ExcludedImageError: the file is not a 3D scalar image for another reason.
    """
    if place.stack is not None:
        return dicom_header(place.stack, max_voxels)
    suffix = suffix_of(place.file.name)
    if suffix in (".nii", ".nii.gz"):
        header = _nifti_header(place.file, max_voxels, frames)
    else:
        header = (_nibabel_header if suffix in NIBABEL_SUFFIXES else _itk_header)(place.file, max_voxels)
    _check_geometry(header)
    if place.converted is not None:
        _check_places(header, place.converted.frames)
    return replace(header, note="; ".join(filter(None, (place.note, header.note))))


def source_bytes(path: Path, source: SeriesSource | None = None) -> int:
    """Return the size on disk of an image, with detached data (`.nhdr`, `.mhd`); of DICOM, that of its folders."""
    if suffix_of(path.name) is None:
        return sum(folder_bytes(folder) for folder in folders_of(path, source))
    return path.stat().st_size + sum(file.stat().st_size for file in detached_data(path) if is_file(file))


def dicom_header(stack: Stack, max_voxels: int = MAX_VOXELS) -> Header:
    """Check a DICOM stack.

    Raises:
        ExcludedImageError: it is too large, or its geometry is impossible.
    """
    _check_shape(stack.shape, max_voxels)
    check_spacing(stack.spacing)
    x, y, z = stack.frames[0].position
    header = Header(stack.shape, stack.spacing, (x, y, z), stack.direction, 2, dicom=stack, note=stack.note)
    _check_geometry(header)
    return header


def _nifti_header(path: Path, max_voxels: int, frames: bool) -> Header:
    raw = nifti.read_header(path)
    _check_scalar(raw)
    count = raw.dims[3] if len(raw.dims) > 3 and raw.dims[3] > 0 else 1
    beyond = raw.dims[4:] if count > 1 else raw.dims[3:]
    if count > 1 and not frames:
        raise FramesError(f"it has {count} frames (4-D)")
    _check_shape((*beyond[::-1], *raw.dims[2::-1]), max_voxels // count)
    _check_kind(raw.dtype)
    _check_plausible(path, raw.data_bytes + raw.offset, compressed=nifti.is_packed(path))
    place = nifti_geometry(path, raw)
    return Header(
        *(raw.shape, place.spacing, place.origin, place.direction, raw.dtype.itemsize, raw),
        note="; ".join(filter(None, (raw.note, place.note))),
        frames=count,
        labels=raw.intent == _LABELS,
    )


def _check_scalar(raw: nifti.NiftiHeader) -> None:
    """Reject vectors and matrices, which the fifth dimension holds, or, if the header says so, the fourth."""
    components = [n for n in raw.dims[3 if raw.intent in _OF_COMPONENTS else 4 :] if n > 1]
    if components:
        raise ExcludedImageError(f"its voxels have {times(tuple(components))} components (vectors or matrices)")


def _nibabel_header(path: Path, max_voxels: int) -> Header:
    raw = nibabel_files.read_header(path)
    _check_shape(raw.dims[::-1], max_voxels)
    _check_kind(raw.dtype)
    check_spacing(raw.spacing)
    shape = (raw.dims[2], raw.dims[1], raw.dims[0])
    place = shape, raw.spacing, raw.origin, raw.direction
    return Header(*place, raw.dtype.itemsize, note=raw.note, labels=raw.intent == _LABELS)


def _itk_header(path: Path, max_voxels: int) -> Header:
    scaling = itk.check_header(path) if suffix_of(path.name) in (".mha", ".mhd") else ""
    if re.search(rb"^encoding:\s*(bzip2|bz2)\s*$", _text_header(path), re.M):
        raise ExcludedImageError("its voxels are packed with bzip2, which is not read; save them as gzip")
    for detached in detached_data(path):
        if not is_file(detached):
            raise ExcludedImageError(f"the file {detached.name} with its voxels does not exist")
    reader = itk.header_reader(path)
    size = tuple(int(n) for n in reader.GetSize())
    _check_shape(size[::-1], max_voxels)
    pixel = reader.GetPixelIDValue()
    if pixel in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise ExcludedImageError("its voxels are complex numbers")
    if reader.GetNumberOfComponents() != 1:
        raise ExcludedImageError(f"its voxels have {reader.GetNumberOfComponents()} components (colour or vectors)")
    unit, note = text_unit(_text_header(path))
    if not _SPACED.search(_text_header(path)):
        note = "its header does not state the size of its voxels, 1 mm is assumed"
    check_spacing(tuple(unit * size for size in reader.GetSpacing()[2::-1]))
    item = _itemsize(pixel)
    compressed = _says_compressed(path)
    _check_plausible(path, int(np.prod(size)) * item, compressed)
    size, spacing, origin, direction = itk.geometry_of(reader, unit)
    note = "; ".join(filter(None, (note, scaling)))
    return Header((size[2], size[1], size[0]), spacing, origin, direction, item, note=note)


def _check_shape(shape: tuple[int, ...], max_voxels: int) -> None:
    extra, shape = shape[:-3], shape[-3:]
    if any(n < 1 for n in (*extra, *shape)):
        raise ExcludedImageError(f"its header claims a size of {times(shape[::-1])}")
    if any(n > 1 for n in extra):
        raise ExcludedImageError(
            f"it has {int(np.prod(extra, dtype=object))} frames (4-D), which are read only from .nii and .nii.gz"
        )
    voxels = int(np.prod(shape, dtype=object))
    if voxels > max_voxels:
        raise ExcludedImageError(f"its header claims {times(shape)} = {voxels:,} voxels; the limit is {max_voxels:,}")
    if len(shape) < 3 or sum(n > 1 for n in shape) < 3:
        single = "one voxel" if voxels == 1 else "one slice" if len(shape) == 3 else "2D"
        raise ExcludedImageError(f"it is no volume but {single} ({times(shape)})")


def _check_kind(dtype: np.dtype[np.generic]) -> None:
    if dtype.kind == "c":
        raise ExcludedImageError("its voxels are complex numbers")
    if dtype.kind == "V" and dtype.names is None:
        raise ExcludedImageError("its number type of 1 bit per voxel is not read")
    if dtype.kind == "V":
        raise ExcludedImageError(f"its voxels have {len(dtype.names or ())} components (colour or vectors)")
    if dtype.kind not in "iuf":
        raise ExcludedImageError(f"its number type {dtype} is not read")


def _check_plausible(path: Path, needed: int, compressed: bool | None) -> None:
    if compressed is None:
        return
    present = source_bytes(path)
    if present * (_MAX_DEFLATE if compressed else 1) < needed:
        raise ExcludedImageError(f"the file is too short: its header claims {needed:,} bytes, it holds {present:,}")


def _check_geometry(header: Header) -> None:
    if not np.isfinite(header.direction).all() or not np.isfinite(header.origin).all():
        raise ExcludedImageError("its position or direction is not a number")
    if abs(np.linalg.det(header.direction)) < 1e-3:
        raise ExcludedImageError("its direction matrix is singular")
    cosines = header.direction.T @ header.direction - np.eye(3)
    if np.abs(cosines).max() > _MAX_SHEAR:
        raise ExcludedImageError("its axes are not perpendicular (sheared direction matrix)")


def _check_places(header: Header, frames: Sequence[Frame]) -> None:
    """Check that slices are inside their volume and span it; those of a mosaic have no position."""
    corners = [corner for frame in frames if not has_type(frame, "MOSAIC") for corner in frame.corners()]
    if not corners:
        return
    matrix = np.linalg.inv(header.direction * np.array(header.spacing[::-1]))
    index = (np.array(corners) - header.origin) @ matrix.T
    last = np.array(header.shape[::-1]) - 1
    if not (np.abs(index.min(axis=0)) <= 1).all() or not (np.abs(index.max(axis=0) - last) <= 1).all():
        raise ExcludedImageError("its slices are not at the positions in their headers")


def _itemsize(pixel: int) -> int:
    return int(sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], pixel)).itemsize)


def _text_header(path: Path) -> bytes:
    """Return the text at the head of a NRRD or MetaImage file; a NRRD's ends at the first blank line."""
    with path.open("rb") as file:
        head = file.read(65536)
    return re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0] if head.startswith(b"NRRD") else head


def _says_compressed(path: Path) -> bool | None:
    """Return whether NRRD or MetaImage data are deflated; None if unknown (bzip2, text, many files)."""
    head = _text_header(path)
    data = _DETACHED.search(head)
    if data and (b"%" in data.group(1) or data.group(1).startswith(b"LIST")):
        return None
    if re.search(rb"^encoding:\s*(gzip|gz)\s*$", head, re.M) or re.search(rb"^CompressedData\s*=\s*True", head, re.M):
        return True
    plain = re.search(rb"^encoding:\s*raw\s*$", head, re.M) or head.startswith(b"ObjectType")
    return False if plain else None


def detached_data(path: Path) -> list[Path]:
    """Return the files with the voxels of a `.nhdr`, `.mhd` or `.hdr`; none if they are in the file itself."""
    suffix = suffix_of(path.name)
    if suffix == ".hdr":
        voxels = [path.with_suffix(end) for end in nibabel_files.VOXEL_SUFFIXES]
        return [next(filter(is_file, voxels), voxels[0])]
    if suffix not in (".nrrd", ".nhdr", ".mha", ".mhd"):
        return []
    head = _text_header(path)
    match = _DETACHED.search(head)
    if match is None:
        return []
    words = match.group(1).split()
    if words[0] == b"LIST":  # the lines that follow are names
        with path.open("rb") as file:
            names = [line.strip() for line in file.read(_LONGEST_LIST)[match.end() :].splitlines() if line.strip()]
    elif b"%" in words[0]:
        names = _numbered(words)
    else:
        names = [] if words[0] == b"LOCAL" else [match.group(1)]
    return [path.parent / os.fsdecode(name) for name in names]


def _numbered(words: list[bytes]) -> list[bytes]:
    """Return the names of `slice%03d.raw FIRST LAST STEP`; none if that is no such pattern."""
    try:
        first, last, step = (*map(int, words[1:3]), int(words[3]) if len(words) > 3 else 1)
        numbers = range(first, last + (1 if step > 0 else -1), step)
        return [words[0] % number for number in numbers[:_MOST_FILES]]
    except (ValueError, TypeError):
        return []
