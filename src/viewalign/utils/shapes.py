"""Spatial shapes of 3D tensors."""

from __future__ import annotations

from torch import Tensor

Size = tuple[int, int, int]
"""(D, H, W) in voxels or grid cells."""


def spatial_size(tensor: Tensor) -> Size:
    """Return the last three dimensions (D, H, W) of a tensor."""
    d, h, w = tensor.shape[-3:]
    return (d, h, w)
