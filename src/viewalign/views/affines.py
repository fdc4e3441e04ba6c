"""Affine maps between voxel indices, as float64 arrays of shape (..., 3, 4).

Axes are (0, 1, 2) = (D, H, W) and voxel centres lie at integer indices everywhere in this package. A map `A` sends the
index `v` to `A[:, :3] @ v + A[:, 3]`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def identity(*lead: int) -> Tensor:
    """Return identity maps of shape (*lead, 3, 4)."""
    return torch.eye(3, 4, dtype=torch.float64).expand(*lead, 3, 4).clone()


def apply(affine: Tensor, points: Tensor) -> Tensor:
    """Map points (..., N, 3) by affines (..., 3, 4)."""
    linear, shift = affine[..., :3], affine[..., 3]
    return points.to(affine.dtype) @ linear.transpose(-1, -2) + shift.unsqueeze(-2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the map `outer(inner(v))`."""
    linear = outer[..., :3] @ inner[..., :3]
    shift = (outer[..., :3] @ inner[..., 3:])[..., 0] + outer[..., 3]
    return torch.cat([linear, shift.unsqueeze(-1)], dim=-1)


def invert(affine: Tensor) -> Tensor:
    """Return the inverse map, by the adjugate of its linear part (no factorisation, so no wait for a GPU)."""
    rows = affine[..., :3].unbind(-2)
    cross = [
        torch.linalg.cross(rows[1], rows[2]),
        torch.linalg.cross(rows[2], rows[0]),
        torch.linalg.cross(rows[0], rows[1]),
    ]
    determinant = (rows[0] * cross[0]).sum(-1)
    inverse = torch.stack(cross, dim=-1) / determinant[..., None, None]
    shift = -(inverse @ affine[..., 3:])
    return torch.cat([inverse, shift], dim=-1)


def same_frame(a: Tensor, b: Tensor) -> Tensor:
    """Say for each pair of affines whether they differ by a translation alone; shape (...)."""
    return ((a[..., :3] - b[..., :3]).abs() < 1e-9).all(-1).all(-1)


def is_integral(affine: Tensor) -> bool:
    """Say whether one map (3, 4) only flips axes and shifts by whole voxels, so that it needs no interpolation."""
    linear, shift = affine[:, :3], affine[:, 3]
    return bool(torch.equal(linear.abs(), torch.eye(3, dtype=linear.dtype)) and torch.equal(shift, shift.round()))


def is_diagonal(affine: Tensor) -> bool:
    """Say whether one map (3, 4) mixes no axes: it only flips, scales and shifts each."""
    linear = affine[:, :3]
    return bool(torch.equal(linear, torch.diag(linear.diagonal())))
