"""The file types that are read, told by their names."""

from __future__ import annotations

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def suffix_of(name: str) -> str | None:
    """Return the file type of a name (`.nii.gz`, `.mha` …), or None if it is not one that is read."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)
