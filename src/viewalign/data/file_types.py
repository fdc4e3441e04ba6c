"""The supported file types, recognised by their names."""

from __future__ import annotations

NIBABEL_SUFFIXES = (".hdr", ".mgz", ".mgh", ".mnc")
"""Read by nibabel: pairs of Analyze and NIfTI (`.hdr` with `.img`), FreeSurfer, MINC."""
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", *NIBABEL_SUFFIXES)


def suffix_of(name: str) -> str | None:
    """Return the file type of a name (`.nii.gz`, `.mha` …), or None if it is not supported."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
