"""Cutting a view out of a volume: a slice where the affine is integral, else one trilinear resampling.

This is the only file that knows that `grid_sample` wants its coordinates in the reverse order of axes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.views import affines

Size = tuple[int, int, int]


def cut(volume: Tensor, to_volume: Tensor, size: Size) -> Tensor:
    """Return the view (C, *size) that an affine cuts out of a volume (C, D, H, W); zero outside the volume.

    Args:
        volume: float32, on any device.
        to_volume: (3, 4) float64 on the CPU, from view index to volume index.
        size: (d, h, w) of the view.
    """
    if affines.is_integral(to_volume):
        return _slice(volume, to_volume, size)
    return _interpolate(volume, to_volume, size)


def inside(shape: Size, to_volume: Tensor, size: Size, device: torch.device | str = "cpu") -> Tensor:
    """Say which voxels of a view (d, h, w) lie within the centres of the volume's outermost voxels."""
    where = _index_grid(to_volume.to(device), size)
    top = torch.tensor(shape, dtype=torch.float64, device=device) - 1
    return ((where >= -1e-6) & (where <= top + 1e-6)).all(-1)


def _index_grid(to_volume: Tensor, size: Size) -> Tensor:
    """Return the volume index (d, h, w, 3) of every voxel of a view."""
    axes = [torch.arange(n, dtype=torch.float64, device=to_volume.device) for n in size]
    parts = [axis[:, None] * to_volume[:, k] for k, axis in enumerate(axes)]
    return parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None] + to_volume[:, 3]


def _slice(volume: Tensor, to_volume: Tensor, size: Size) -> Tensor:
    flips = to_volume[:, :3].diagonal() < 0
    shift = to_volume[:, 3].long()
    starts = [int(t) - (n - 1 if flip else 0) for t, n, flip in zip(shift, size, flips, strict=True)]
    out = volume.new_zeros(volume.shape[0], *size)
    source, target = [], []
    for start, n, length in zip(starts, size, volume.shape[1:], strict=True):
        low, high = max(start, 0), min(start + n, length)
        source.append(slice(low, max(low, high)))
        target.append(slice(low - start, max(low, high) - start))
    if all(part.stop > part.start for part in source):
        out[:, target[0], target[1], target[2]] = volume[:, source[0], source[1], source[2]]
    return out.flip([1 + axis for axis in range(3) if flips[axis]])


def _interpolate(volume: Tensor, to_volume: Tensor, size: Size) -> Tensor:
    shape = torch.tensor(volume.shape[1:], dtype=torch.float64)
    extent = torch.tensor(size, dtype=torch.float64)
    # In grid_sample's units (−1…1 from edge to edge) an index x of n voxels is (2x + 1)/n − 1, and likewise a view's.
    linear = to_volume[:, :3] * extent / shape[:, None]
    middle = to_volume[:, :3] @ ((extent - 1) / 2) + to_volume[:, 3]
    shift = (2 * middle + 1) / shape - 1
    theta = torch.cat([linear.flip(0, 1), shift.flip(0)[:, None]], dim=1)
    grid = F.affine_grid(theta[None].to(volume), [1, volume.shape[0], *size], align_corners=False)
    return F.grid_sample(volume[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
