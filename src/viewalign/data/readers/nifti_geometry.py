"""Geometry of NIfTI files: by ITK, as in nnU-Net and nnssl, or by the sform where ITK would be wrong.

ITK turns a zero, negative or NaN voxel size into 1 or its absolute value, does not read a file that is compressed
without the suffix .gz, and without a qform takes voxel sizes from `pixdim` even if the sform differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from viewalign.data.readers import itk
from viewalign.data.readers.itk import Triple
from viewalign.data.readers.nifti import NiftiHeader
from viewalign.data.readers.units import check_spacing, spacing_fault, times, unit_note
from viewalign.errors import ExcludedImageError

_SAME_SIZE = 0.01  # accepted relative difference of two voxel sizes
_TO_LPS = np.diag([-1.0, -1.0, 1.0])


class Geometry(NamedTuple):
    """Spacing (D, H, W), origin (x, y, z) and direction (3×3) as in `Header`, and a note."""

    spacing: Triple
    origin: Triple
    direction: NDArray[np.float64]
    note: str = ""


def nifti_geometry(path: Path, raw: NiftiHeader) -> Geometry:
    """Return the geometry in mm.

    Raises:
        ExcludedImageError: the voxel size is impossible, or readers see different dimensions.
    """
    fault = _pixdim_fault(raw)
    if fault or raw.unit != 1.0:
        geometry = _by_affine(raw)
        return geometry._replace(note="; ".join(filter(None, (fault, unit_note(raw.unit)))))
    check_spacing(raw.pixdim[2::-1])
    try:
        size, spacing, origin, direction = itk.geometry_of(itk.header_reader(path))
    except ExcludedImageError:  # axes that are not perpendicular, or a name that does not fit
        geometry = _by_affine(raw)
    else:
        if size != raw.dims[: len(size)] or len(size) < 3:
            raise ExcludedImageError("its header is contradictory: two readers see different dimensions")
        geometry = Geometry(spacing, origin, direction)
        if not np.isfinite([*direction.ravel(), *origin]).all():  # ITK takes the sform, also if it is not finite
            geometry = _by_affine(raw)
    return geometry._replace(note=_form_note(raw, geometry))


def pair_geometry(raw: NiftiHeader) -> Geometry:
    """Return the geometry in mm of a `.hdr` with `.img`, by nibabel's affine: ITK does not read all such pairs.

    Raises:
        ExcludedImageError: the voxel size is impossible.
    """
    geometry = _by_affine(raw)
    return geometry._replace(note=unit_note(raw.unit) or _form_note(raw, geometry))


def _pixdim_fault(raw: NiftiHeader) -> str:
    """Return why the sform must replace `pixdim`; empty if it need not, or there is none."""
    if raw.sform is None:
        return ""
    sizes = np.linalg.norm(raw.sform[:3, :3], axis=0)
    if fault := spacing_fault(tuple(raw.unit * size for size in raw.pixdim[2::-1])):
        return f"{fault}; that of the sform is used"
    if raw.qform is None and np.abs(sizes / raw.pixdim - 1).max() > _SAME_SIZE:
        there, used = (times(tuple(float(size) for size in row[::-1])) for row in (np.array(raw.pixdim), sizes))
        return f"its header has voxels of {there} mm and its sform of {used} mm; the sform is used"
    return ""


def _by_affine(raw: NiftiHeader) -> Geometry:
    """Return nibabel's affine, of the sform if it is set, else of the qform, from RAS to LPS."""
    affine = _TO_LPS @ raw.affine[:3] * raw.unit
    sizes = np.linalg.norm(affine[:, :3], axis=0)
    check_spacing(tuple(float(size) for size in sizes[::-1]))
    x, y, z = (float(size) for size in sizes)
    origin = (float(affine[0, 3]), float(affine[1, 3]), float(affine[2, 3]))
    return Geometry((z, y, x), origin, affine[:, :3] / sizes)


def _form_note(raw: NiftiHeader, geometry: Geometry) -> str:
    """Return which of two contradicting affines is used, or that there is none."""
    if raw.qform is None and raw.sform is None:
        return "neither sform nor qform is set: which side is left is a guess"
    if raw.qform is None or raw.sform is None:
        return ""
    far = np.array([*raw.dims[:3], 1.0])  # both are compared where they differ most: at the last voxel
    apart = max(np.abs((raw.qform - raw.sform) @ end).max() for end in (far, np.array([0.0, 0.0, 0.0, 1.0])))
    if apart < min(geometry.spacing) / 2:
        return ""
    used = _TO_LPS @ np.column_stack([geometry.direction * geometry.spacing[::-1], geometry.origin])
    counts = min(("qform", raw.qform), ("sform", raw.sform), key=lambda form: float(np.abs(form[1][:3] - used).sum()))
    return f"sform and qform disagree by {apart:.3g} mm; the {counts[0]} is used"
