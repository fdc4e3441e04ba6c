"""Affine maps between voxel indices: float64 tensors (..., 3, 4).

Axes are (0, 1, 2) = (D, H, W); voxel centres lie at integer indices. An affine `A` maps the index `v` to
`A[:, :3] @ v + A[:, 3]`.
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
    """Return the inverse map, by the adjugate: a factorisation would synchronise with the GPU."""
    a, b, c = affine[..., :3].unbind(-2)
    cross = [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)]
    determinant = (a * cross[0]).sum(-1)
    inverse = torch.stack(cross, dim=-1) / determinant[..., None, None]
    return torch.cat([inverse, -(inverse @ affine[..., 3:])], dim=-1)


def same_frame(a: Tensor, b: Tensor) -> Tensor:
    """Return, for each pair of affines, whether they differ by a translation only; shape (...)."""
    return ((a[..., :3] - b[..., :3]).abs() < 1e-9).all(-1).all(-1)


def is_integral(affine: Tensor) -> bool:
    """Return whether one map (3, 4) only flips axes and shifts by whole voxels, so that it needs no interpolation."""
    linear, shift = affine[:, :3], affine[:, 3]
    return bool(torch.equal(linear.abs(), torch.eye(3, dtype=linear.dtype)) and torch.equal(shift, shift.round()))


def is_diagonal(affine: Tensor) -> bool:
    """Return whether one map (3, 4) flips, scales and shifts each axis separately."""
    linear = affine[:, :3]
    return bool(torch.equal(linear, torch.diag(linear.diagonal())))
