"""Cutting a view out of a volume: a slice where the affine is integral, else one trilinear resampling.

This is the only file that knows that `grid_sample` wants its coordinates in the reverse order of axes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32, full_precision, send
from viewalign.views import affines

Size = tuple[int, int, int]
_SLACK = 1e-6
"""How far, in voxels, rounding may carry a coordinate past the outermost centre."""


def cut(volume: Tensor, to_volume: Tensor, size: Size) -> Tensor:
    """Return the view (C, *size) that an affine cuts out of a volume (C, D, H, W); zero outside the volume.

    Args:
        volume: float32, on any device.
        to_volume: (3, 4) float64 on the CPU, from view index to volume index.
        size: (d, h, w) of the view.
    """
    if affines.is_integral(to_volume):
        return _slice(volume, to_volume, size)
    if affines.is_diagonal(to_volume):
        return _interpolate_axes(volume, to_volume, size)
    return _interpolate(volume, to_volume, size)


def contains(shape: Size, to_volume: Tensor, size: Size) -> bool:
    """Say whether a whole view lies within the centres of the volume's outermost voxels; it does if its corners do."""
    ends = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in size))
    corners = affines.apply(to_volume, ends)
    top = torch.tensor(shape, dtype=torch.float64) - 1
    return bool(((corners >= -_SLACK) & (corners <= top + _SLACK)).all())


def inside(shape: Size, to_volume: Tensor, size: Size, device: torch.device | str = "cpu") -> Tensor:
    """Say which voxels of a view (d, h, w) lie within the centres of the volume's outermost voxels."""
    within = torch.ones(size, dtype=torch.bool, device=device)
    if contains(shape, to_volume, size):
        return within
    steps = [torch.arange(n, dtype=torch.float64, device=device) for n in size]
    for length, row in zip(shape, to_volume.tolist(), strict=True):
        # A coordinate that moves along one axis of the view alone is worked out along that axis alone.
        parts = [
            slope * _along(step, axis) for axis, (slope, step) in enumerate(zip(row, steps, strict=False)) if slope
        ]
        where = sum(parts, torch.full((1, 1, 1), row[3], dtype=torch.float64, device=device))
        within &= (where >= -_SLACK) & (where <= length - 1 + _SLACK)
    return within


def _along(values: Tensor, axis: int) -> Tensor:
    """Lay values (n) along one of three axes."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return values.view(shape)


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


def _interpolate_axes(volume: Tensor, to_volume: Tensor, size: Size) -> Tensor:
    """Resample axis by axis, which is what trilinear interpolation comes to where axes do not mix."""
    out = volume
    for axis, n in enumerate(size):
        length = volume.shape[1 + axis]
        where = to_volume[axis, axis] * torch.arange(n, dtype=torch.float64) + to_volume[axis, 3]
        low = where.floor()
        index = torch.stack([low, low + 1])
        share = torch.stack([1 - (where - low), where - low]) * ((index >= 0) & (index < length))
        # One transfer for all four rows: cells are exact in float64.
        index, share = send(torch.stack([index.clamp(0, length - 1), share]), out.device)
        cells, weights = index.long(), share.to(out.dtype).view(2, -1, *(1,) * (2 - axis))
        first, second = (out.index_select(1 + axis, cells[k]) * weights[k] for k in range(2))
        out = first.add_(second)
    return out


def _interpolate(volume: Tensor, to_volume: Tensor, size: Size) -> Tensor:
    shape = torch.tensor(volume.shape[1:], dtype=torch.float64)
    # In grid_sample's units (−1…1 from edge to edge) an index x of n voxels is (2x + 1)/n − 1.
    scale = (2 / shape)[:, None]
    linear, shift = to_volume[:, :3] * scale, (to_volume[:, 3] * 2 + 1) / shape - 1
    steps = [torch.arange(n, dtype=torch.float64)[:, None] * linear[:, k] for k, n in enumerate(size)]
    rows = torch.cat([steps[0] + shift, *steps[1:]]).flip(1).to(volume.dtype)
    first, second, third = send(rows, volume.device).split(size)
    grid = (first[:, None, None] + second[:, None]) + third
    return F.grid_sample(volume[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


@full_precision
def warp(images: Tensor, where: Tensor) -> Tensor:
    """Read images (N, C, D, H, W) at places of their own (N, d, h, w, 3), trilinearly; gradients reach both.

    Args:
        images: on any device; outside them is zero.
        where: voxel indices along (D, H, W).

    Returns:
        (N, C, d, h, w), float32 or better.
    """
    images = at_least_float32(images)
    places = [(2 * one + 1) / n - 1 for one, n in zip(where.unbind(-1), images.shape[2:], strict=True)]
    grid = torch.stack(places[::-1], dim=-1).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def voxel_centres(grid: Size, size: Size, like: Tensor) -> Tensor:
    """Return where the cells of a grid over a view of `size` voxels lie, (d, h, w, 3) in voxel indices."""
    axes = [
        (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) * voxels / n - 0.5
        for n, voxels in zip(grid, size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


@full_precision
def map_places(affine: Tensor, grid: Size, size: Size, field: Tensor | None = None) -> Tensor:
    """Return where each cell of a grid is sent: `affine(x + field(x))`, (N, d, h, w, 3) in voxel indices.

    Args:
        affine: (N, 3, 4) between views of `size` voxels.
        grid: whose cells are mapped; `size` itself for voxels.
        size: (D, H, W) of the views.
        field: (N, 3, d, h, w) displacements in voxels; none where it is None.
    """
    places = voxel_centres(grid, size, affine).expand(affine.shape[0], *grid, 3)
    if field is not None:
        places = places + field.movedim(1, -1)
    sent: Tensor = affines.apply(affine, places.flatten(1, 3)).unflatten(1, grid)
    return sent


def to_cells(places: Tensor, grid: Size, size: Size) -> Tensor:
    """Return voxel indices (..., 3) of a view of `size` voxels as indices of a grid's cells."""
    axes = zip(places.unbind(-1), grid, size, strict=True)
    return torch.stack([(place + 0.5) * (n / voxels) - 0.5 for place, n, voxels in axes], dim=-1)


def sample_displacement_field(rng: np.random.Generator, size: Size, amplitude: float, knots: int = 4) -> Tensor:
    """Draw a smooth field of displacements, (3, D, H, W) float32 in voxels.

    Args:
        rng: the image's own generator.
        size: of the view.
        amplitude: standard deviation of the displacement at a knot, as a share of a side.
        knots: along each axis, evenly from edge to edge; between them the field is linear.
    """
    scale = amplitude * np.array(size).reshape(3, 1, 1, 1)
    drawn = torch.from_numpy((rng.normal(size=(3, knots, knots, knots)) * scale).astype(np.float32))
    return F.interpolate(drawn[None], size, mode="trilinear", align_corners=True)[0]
