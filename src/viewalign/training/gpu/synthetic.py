"""Synthetic volumes, for checks on machines without images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from viewalign.data.store import Store, store_from_arrays
from viewalign.utils.rng import make_rng

Shape = tuple[int, int, int]
HEAD: Shape = (180, 216, 180)
"""A head at 1 mm, in voxels."""
SMALL: Shape = (48, 52, 50)
"""Larger than the 32³ views of the small recipes."""


def synthetic_volume(number: int, shape: Shape) -> NDArray[np.float32]:
    """Return an ellipsoid of smooth texture and noise on a background of zeros, z-scored.

    Args:
        number: seed of the volume.
        shape: (D, H, W) in voxels.
    """
    rng = make_rng(number, "synthetic volume")
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 7, 7, 7)).astype(np.float32))
    image = torch.nn.functional.interpolate(coarse, shape, mode="trilinear", align_corners=True)[0, 0]
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    axes = [torch.linspace(-1, 1, n) for n in shape]
    radius = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij"))
    assert isinstance(radius, torch.Tensor)
    # Rounded to 1/64, like quantised scanner values: unrounded noise would not compress.
    values = torch.round((1 + image + 0.2 * noise) * 64) / 64
    voxels: NDArray[np.float32] = (values * (radius < 1)).numpy()
    return voxels


def synthetic_store(folder: Path, count: int, shape: Shape) -> Store:
    """Write a store of `count` synthetic volumes of different subjects."""
    return store_from_arrays(folder, {f"made{k:02d}": synthetic_volume(k, shape) for k in range(count)})
