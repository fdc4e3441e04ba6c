"""Random numbers that belong to a sample, not to a process.

Every random number is a function of a key such as `(seed, sample, view, "mask")`. No generator is shared between
samples, so that a resumed run, two processes and any number of workers use the same numbers.
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
        keys: non-negative integers (seed, sample index, view …) and words that name the purpose.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(_words(keys))))


def derive_seed(*keys: Key) -> int:
    """Return the 63-bit seed of a key."""
    return int(np.random.SeedSequence(_words(keys)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_torch_generator(device: torch.device | str, *keys: Key) -> torch.Generator:
    """Return the torch generator of a key on `device`; equal keys give equal numbers on the same type of device."""
    return torch.Generator(device).manual_seed(derive_seed(*keys))
