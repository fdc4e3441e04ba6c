"""Damage a good file at random, and read it in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def damage(content: bytes, seed: int) -> bytes:
    """Return the content with one to four damages, half of them near the head: bits, bytes, holes, copies, a cut."""
    rng = np.random.default_rng(seed)
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        end = len(data) if rng.random() < 0.5 else min(len(data), 600)
        if end < 2:
            break
        at, length = int(rng.integers(end)), int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"9999", b"-1-1"])
        else:
            del data[at:]
    return bytes(data)


def attempt(path: Path) -> tuple[str, int]:
    """Read a file; return its shape or the reason why not, and the peak memory of this process in bytes so far."""
    from viewalign.data.readers.files import read_volume
    from viewalign.errors import ExcludedImageError

    try:
        said = f"shape {read_volume(path).array.shape}"
    except ExcludedImageError as exclusion:
        said = f"excluded: {exclusion}"
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return said, 1024 * int(peak.split()[1])
