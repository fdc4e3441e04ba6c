"""Lengths of headers: their unit, and whether they can be voxel sizes."""

from __future__ import annotations

import re

import numpy as np

from viewalign.errors import ExcludedImageError

FINEST, COARSEST = 1e-3, 100.0
"""Accepted voxel sizes in mm; others are errors of the header."""
_UNITS = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3, "cm": 10.0, "m": 1000.0, "nm": 1e-6}
_NRRD = re.compile(r"^space units:\s*(.+?)\s*$", re.MULTILINE)
_META = re.compile(r"^DistanceUnits\s*=\s*(\S+)\s*$", re.MULTILINE)


def text_unit(header: bytes) -> tuple[float, str]:
    """Return the unit of lengths in the header of a NRRD or MetaImage file, in mm, and a note if it is not 1.

    Raises:
        ExcludedImageError: an unknown unit, or a different one for each axis.
    """
    text = header.decode("utf-8", "replace")
    match = (_NRRD if text.startswith("NRRD") else _META).search(text)
    names = set(re.findall(r'[^"\s]+', match[1])) if match else set()
    if not names or names == {"?"} or names == {"???"}:
        return 1.0, ""
    if len(names) > 1 or (name := names.pop()) not in _UNITS:
        assert match is not None
        raise ExcludedImageError(f"the unit of its lengths is not known ({match[1]})")
    return _UNITS[name], unit_note(_UNITS[name])


def unit_note(unit: float) -> str:
    """Return a note that lengths were converted to mm; empty if they are in mm."""
    return "" if unit == 1.0 else f"its lengths are in units of {unit:g} mm"


def spacing_fault(spacing: tuple[float, ...]) -> str:
    """Return what is wrong with a voxel size in mm, or an empty string."""
    named = times(spacing)
    if not np.isfinite(spacing).all():
        return f"its voxel size is not a number ({named} mm)"
    if any(size == 0 for size in spacing):
        return f"its voxel size is zero along an axis ({named} mm)"
    if any(size < 0 for size in spacing):
        return f"its voxel size is negative along an axis ({named} mm)"
    if min(spacing) < FINEST or max(spacing) > COARSEST:
        return f"its voxel size is impossible ({named} mm)"
    return ""


def check_spacing(spacing: tuple[float, ...]) -> None:
    """Check a voxel size in mm.

    Raises:
        ExcludedImageError: it is impossible.
    """
    if fault := spacing_fault(spacing):
        raise ExcludedImageError(fault)


def times(numbers: tuple[float, ...]) -> str:
    """Write sizes as `1×2×3`."""
    return "×".join(f"{number:g}" for number in numbers)
