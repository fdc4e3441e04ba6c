"""Arrays that are worked out once and kept in a folder; read again they are mapped, not loaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


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
