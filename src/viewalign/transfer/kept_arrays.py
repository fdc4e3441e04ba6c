"""Arrays that are worked out once and kept in a folder; read again they are mapped, not loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
_WHOLE_FILES = (".nii", ".nii.gz", ".mha", ".nrrd", ".b2nd")
"""Files that hold all of an image. A DICOM slice or a detached header says nothing of its neighbours."""


def stamps(paths: Iterable[Path]) -> list[list[str | int]] | None:
    """Return each file's path, size and time of change; None where a change of its image could not be told by them."""
    told: list[list[str | int]] = []
    for path in paths:
        if not path.name.lower().endswith(_WHOLE_FILES) or not path.is_file():
            return None
        facts = path.stat()
        told.append([str(path.resolve()), facts.st_size, facts.st_mtime_ns])
    return told


def kept(place: Path, make: Callable[[], Arrays]) -> dict[str, NDArray[Any]]:
    """Return the arrays that lie in a folder, after making and writing them where there is none.

    What is changed in them stays with the caller. Processes may call this together: the folder appears whole.
    """
    if not place.is_dir():
        _write(make(), place)
    return {file.stem: np.load(file, mmap_mode="c", allow_pickle=False) for file in sorted(place.glob("*.npy"))}


def _write(arrays: Arrays, place: Path) -> None:
    partial = place.with_name(f".writing-{place.name}-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        partial.rename(place)
    except OSError:
        shutil.rmtree(partial)
        if not place.is_dir():  # else another process was faster
            raise
