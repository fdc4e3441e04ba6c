"""Random numbers that belong to a sample, not to a process.

Every draw is a function of a key such as `(seed, sample, view, "mask")`. No generator lives on between samples, so a
resumed run, a run on two processes and a run with another number of workers see the same numbers.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

Key = int | str


def _words(keys: tuple[Key, ...]) -> list[int]:
    return [zlib.crc32(key.encode()) if isinstance(key, str) else int(key) for key in keys]


def make_rng(*keys: Key) -> np.random.Generator:
    """Return the NumPy generator of a key.

    Args:
        keys: non-negative integers (seed, sample index, view …) and words that name the purpose of the draw.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_words(keys))))


def derive_seed(*keys: Key) -> int:
    """Return a 63-bit seed that a key stands for."""
    return int(np.random.SeedSequence(_words(keys)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_torch_generator(device: torch.device | str, *keys: Key) -> torch.Generator:
    """Return the torch generator of a key on `device`; a key gives the same numbers on the same kind of device."""
    return torch.Generator(device).manual_seed(derive_seed(*keys))
