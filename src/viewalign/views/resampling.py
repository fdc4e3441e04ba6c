"""Resample volumes and images by affines and displacement fields.

The only file that uses `grid_sample`, whose coordinates are in the reverse order of axes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32, full_precision, send
from viewalign.utils.shapes import Size
from viewalign.views import affines

_TOLERANCE = 1e-6
"""Voxels by which rounding may move a coordinate past the outermost centre."""


def resample(volume: Tensor, to_volume: Tensor, size: Size) -> Tensor:
    """Return the view (C, *size) of a volume (C, D, H, W); zero outside the volume.

    Integral affines are slices without interpolation; all others are interpolated trilinearly.

    Args:
        volume: float32, on any device.
        to_volume: (3, 4) float64 on the CPU, from voxel indices of the view to those of the volume.
        size: (d, h, w) of the view.
    """
    if affines.is_integral(to_volume):
        return _slice(volume, to_volume, size)
    if affines.is_diagonal(to_volume):
        return _interpolate_axes(volume, to_volume, size)
    return _interpolate(volume, to_volume, size)


def contains(shape: Size, to_volume: Tensor, size: Size) -> bool:
    """Return whether a view lies within the centres of the volume's outermost voxels; its corners decide."""
    ends = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in size))
    corners = affines.apply(to_volume, ends)
    top = torch.tensor(shape, dtype=torch.float64) - 1
    return bool(((corners >= -_TOLERANCE) & (corners <= top + _TOLERANCE)).all())


def inside(shape: Size, to_volume: Tensor, size: Size, device: torch.device | str = "cpu") -> Tensor:
    """Return which voxels of a view lie within the centres of the volume's outermost voxels; bool (d, h, w)."""
    within = torch.ones(size, dtype=torch.bool, device=device)
    if contains(shape, to_volume, size):
        return within
    steps = [torch.arange(n, dtype=torch.float64, device=device) for n in size]
    for length, row in zip(shape, to_volume.tolist(), strict=True):
        # A coordinate that changes along one axis of the view only is computed along that axis only.
        parts = [
            slope * step.view(-1, *(1,) * (2 - k))
            for k, (slope, step) in enumerate(zip(row[:3], steps, strict=True))
            if slope
        ]
        where = sum(parts, torch.full((1, 1, 1), row[3], dtype=torch.float64, device=device))
        within &= (where >= -_TOLERANCE) & (where <= length - 1 + _TOLERANCE)
    return within


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
    """Interpolate axis by axis: the same as trilinear interpolation where axes do not mix, and faster."""
    out = volume
    for axis, n in enumerate(size):
        length = volume.shape[1 + axis]
        where = to_volume[axis, axis] * torch.arange(n, dtype=torch.float64) + to_volume[axis, 3]
        low = where.floor()
        index = torch.stack([low, low + 1])
        weight = torch.stack([1 - (where - low), where - low]) * ((index >= 0) & (index < length))
        # One transfer for all four rows: cell indices are exact in float64.
        index, weight = send(torch.stack([index.clamp(0, length - 1), weight]), out.device)
        cells, weights = index.long(), weight.to(out.dtype).view(2, -1, *(1,) * (2 - axis))
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
    """Interpolate images (N, C, D, H, W) at coordinates (N, d, h, w, 3) in voxel indices; zero outside.

    Differentiable in both. Returns (N, C, d, h, w), float32 or float64.
    """
    images = at_least_float32(images)
    scaled = [(2 * x + 1) / n - 1 for x, n in zip(where.unbind(-1), images.shape[2:], strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def cell_centres(grid: Size, size: Size, like: Tensor) -> Tensor:
    """Return the centres of grid cells over a view of `size` voxels, (d, h, w, 3) in voxel indices."""
    axes = [
        (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) * voxels / n - 0.5
        for n, voxels in zip(grid, size, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


@full_precision
def map_grid(affine: Tensor, grid: Size, size: Size, field: Tensor | None = None) -> Tensor:
    """Map cell centres x by `affine(x + field(x))`; returns (N, d, h, w, 3) in voxel indices.

    Args:
        affine: (N, 3, 4) between views of `size` voxels.
        grid: (d, h, w) of the cells; `size` itself maps voxels.
        size: (D, H, W) of the views.
        field: (N, 3, d, h, w) displacements in voxels.
    """
    points = cell_centres(grid, size, affine).expand(affine.shape[0], *grid, 3)
    if field is not None:
        points = points + field.movedim(1, -1)
    mapped: Tensor = affines.apply(affine, points.flatten(1, 3)).unflatten(1, grid)
    return mapped


def voxel_to_cell(points: Tensor, grid: Size, size: Size) -> Tensor:
    """Convert voxel indices (..., 3) of a view of `size` voxels to cell indices of a grid over it."""
    axes = zip(points.unbind(-1), grid, size, strict=True)
    return torch.stack([(x + 0.5) * (n / voxels) - 0.5 for x, n, voxels in axes], dim=-1)


def sample_displacement_field(rng: np.random.Generator, size: Size, amplitude: float, knots: int = 4) -> Tensor:
    """Sample a smooth displacement field, (3, D, H, W) float32 in voxels.

    Args:
        rng: the image's own generator.
        size: (D, H, W) of the field.
        amplitude: standard deviation of the displacement at a knot, relative to the side.
        knots: number of knots per axis, from edge to edge; the field is linear between them.
    """
    scale = amplitude * np.array(size).reshape(3, 1, 1, 1)
    values = torch.from_numpy((rng.normal(size=(3, knots, knots, knots)) * scale).astype(np.float32))
    return F.interpolate(values[None], size, mode="trilinear", align_corners=True)[0]
