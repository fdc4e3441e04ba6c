"""Pairs of Analyze and NIfTI files (`.hdr` with `.img`), FreeSurfer's `.mgz` and MINC's `.mnc`, read by nibabel."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from numpy.typing import NDArray

from viewalign.data.readers.itk import Triple
from viewalign.data.readers.nifti import as_float32, header_of
from viewalign.data.readers.nifti_geometry import pair_geometry
from viewalign.errors import ExcludedImageError

nib: Any = nibabel  # few of its functions carry type hints


VOXEL_SUFFIXES = (".img", ".IMG", ".img.gz")
"""Of the files with the voxels of a `.hdr`."""


class NibabelHeader(NamedTuple):
    """Dimensions (x, y, z, …), number type, geometry as in `Header`, and what voxels of NIfTI mean, as its code."""

    dims: tuple[int, ...]
    dtype: np.dtype[np.generic]
    spacing: Triple
    origin: Triple
    direction: NDArray[np.float64]
    note: str
    intent: int = 0


def read_header(path: Path) -> NibabelHeader:
    """Read the header of a file.

    Raises:
        ExcludedImageError: damaged, of another type, or without its voxels.
    """
    image = _load(path)
    dims, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    if isinstance(image, nib.Nifti1Pair) and len(dims) > 2:  # as a .nii: unit, and contradicting or missing forms
        try:
            raw = header_of(image.header)
        except ValueError as error:
            raise ExcludedImageError(f"its header cannot be read: {error}") from None
        return NibabelHeader(dims, dtype, *pair_geometry(raw), raw.intent)
    affine = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(image.affine, dtype=np.float64)[:3]
    x, y, z = (float(size) for size in np.linalg.norm(affine[:, :3], axis=0))
    if min(x, y, z) == 0:
        raise ExcludedImageError("its direction matrix is singular")
    origin = (float(affine[0, 3]), float(affine[1, 3]), float(affine[2, 3]))
    note = (
        "Analyze files have no orientation: which side is left is a guess" if _has_no_orientation(path, image) else ""
    )
    return NibabelHeader(dims, dtype, (z, y, x), origin, affine[:, :3] / (x, y, z), note)


def read_voxels(path: Path) -> NDArray[np.float32]:
    """Read all voxels as float32 (…, D, H, W), factor and offset applied.

    Raises:
        ExcludedImageError: damaged or truncated.
    """
    try:
        return np.ascontiguousarray(as_float32(np.asarray(_load(path).dataobj)).T)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ExcludedImageError(f"the file is damaged or truncated: {error}") from None


def _load(path: Path) -> Any:
    voxels = path.with_suffix(".img")
    if path.suffix.lower() == ".hdr" and not any(path.with_suffix(end).exists() for end in VOXEL_SUFFIXES):
        raise ExcludedImageError(f"the file {voxels.name} with its voxels does not exist")
    try:
        return nib.load(path)
    except Exception as error:  # nibabel raises many kinds for a damaged header, and needs h5py for MINC 2
        raise ExcludedImageError(f"its header cannot be read: {error}") from None


def _has_no_orientation(path: Path, image: Any) -> bool:
    return isinstance(image, nib.AnalyzeImage) and not path.with_suffix(".mat").exists()  # where SPM writes it
