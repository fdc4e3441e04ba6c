"""How much one file may ask for, in voxels and seconds. What asks for more is set aside and stops nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from viewalign.volumes.headers import MAX_VOXELS

BASE_BYTES = 600_000_000
COPIES = 6
"""A worker needs at most `BASE_BYTES + COPIES × 4 × voxels` bytes (tests/volumes/test_limits.py)."""
DEFAULT_SECONDS = 900.0


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Attributes:
        seconds: how long it may take, reading and writing included; None for ever.
        max_voxels: voxels before and after resampling, all frames together.
    """

    seconds: float | None = DEFAULT_SECONDS
    max_voxels: int = MAX_VOXELS


def voxels_that_fit(memory: int | None = None) -> int:
    """Return the largest image, in voxels, whose preparation fits into `memory` bytes (default: this machine's)."""
    memory = memory_bytes() if memory is None else memory
    return max(1, min(MAX_VOXELS, (memory - BASE_BYTES) // (COPIES * 4)))


def worker_bytes(voxels: int) -> int:
    """Return the memory that preparing an image of so many voxels needs at most."""
    return BASE_BYTES + COPIES * 4 * voxels


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its control group's where that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 << 30
    return min([whole, *_group_limits()])


def _group_limits() -> list[int]:
    found = []
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found.append(int(text))
    return found
