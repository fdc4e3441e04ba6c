"""A regular lattice of points that covers the region two views share.

The bounding box of the shared region is divided into cells with `samples` points per axis each, as in ROI-Align (He et
al., arXiv:1703.06870). Points are volume coordinates, so each is the same anatomical position in both views.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from viewalign.utils.shapes import Size
from viewalign.views import affines


def lattice_points(to_volume_a: Tensor, to_volume_b: Tensor, size: Size, cells: Size, samples: int = 2) -> Tensor:
    """Return points (B, P, 3) in voxel indices of the volume, float64, in raster order over `cells` x `samples`.

    Args:
        to_volume_a, to_volume_b: (B, 3, 4) affines of the two views.
        size: (D, H, W) of a view in voxels.
        cells: number of cells per axis.
        samples: points per axis and cell.

    The box lies in the frame of view a, so every point of overlapping views is inside a. If the views were rotated
    independently, it is the bounding box of their intersection, and the caller has to ignore points outside view b
    (`inside`); if the views do not overlap, no point is inside b.
    """
    low, high = common_box(to_volume_a, to_volume_b, size)
    axes = [_centres(low[:, k], high[:, k], cells[k] * samples) for k in range(3)]
    b, (d, h, w) = low.shape[0], (axis.shape[1] for axis in axes)
    grid = torch.stack(
        [
            axes[0][:, :, None, None].expand(b, d, h, w),
            axes[1][:, None, :, None].expand(b, d, h, w),
            axes[2][:, None, None, :].expand(b, d, h, w),
        ],
        dim=-1,
    )
    return affines.apply(to_volume_a, grid.flatten(1, 3))


def _centres(low: Tensor, high: Tensor, count: int) -> Tensor:
    steps = (torch.arange(count, dtype=torch.float64, device=low.device) + 0.5) / count
    return low[:, None] + (high - low)[:, None] * steps


def common_box(to_volume_a: Tensor, to_volume_b: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Return lower and upper corner (B, 3) of the shared region's bounding box, as voxel edges of view a."""
    b_to_a = affines.compose(affines.invert(to_volume_a), to_volume_b)
    top = torch.tensor(size, dtype=torch.float64, device=to_volume_a.device) - 0.5
    shift = b_to_a[..., 3]
    low, high = torch.clamp(shift - 0.5, min=-0.5), torch.minimum(top, shift + top)
    rotated = ~affines.same_frame(to_volume_a, to_volume_b)
    if bool(rotated.any()):
        general = _polyhedron_box(affines.invert(b_to_a), top)
        low = torch.where(rotated[:, None], general[0], low)
        high = torch.where(rotated[:, None], general[1], high)
    return low, high


def _polyhedron_box(a_to_b: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounding box of the intersection of two boxes, one of them under an affine map.

    The twelve half-spaces `n·x <= c` meet in at most 220 points; those inside all half-spaces are the vertices.
    """
    batch = a_to_b.shape[0]
    eye = torch.eye(3, dtype=torch.float64, device=top.device).expand(batch, 3, 3)
    linear, shift = a_to_b[..., :3], a_to_b[..., 3]
    normals = torch.cat([eye, -eye, linear, -linear], dim=1)
    half = torch.full((batch, 3), 0.5, dtype=torch.float64, device=top.device)
    offsets = torch.cat([top.expand(batch, 3), half, top - shift, half + shift], dim=1)
    triples = torch.tensor(list(combinations(range(12), 3)), device=top.device)
    n, c = normals[:, triples], offsets[:, triples]
    crosses = torch.stack([torch.linalg.cross(n[:, :, (k + 1) % 3], n[:, :, (k + 2) % 3]) for k in range(3)], dim=2)
    determinant = (n[:, :, 0] * crosses[:, :, 0]).sum(-1, keepdim=True)
    points = (c[..., None] * crosses).sum(2) / torch.where(determinant.abs() < 1e-9, torch.nan, determinant)
    vertex = (points @ normals.transpose(1, 2) <= offsets[:, None] + 1e-6).all(-1, keepdim=True)
    low = torch.where(vertex, points, torch.inf).amin(1)
    high = torch.where(vertex, points, -torch.inf).amax(1)
    empty = ~vertex.any(1)
    return torch.where(empty, 0.0, low), torch.where(empty, 0.0, high)


def inside(points: Tensor, to_volume: Tensor, size: Size) -> Tensor:
    """Return which volume points (B, P, 3) lie within a view's voxels, edges included; bool (B, P)."""
    index = affines.apply(affines.invert(to_volume), points)
    top = torch.tensor(size, dtype=torch.float64, device=points.device) - 0.5
    return ((index >= -0.5 - 1e-6) & (index <= top + 1e-6)).all(-1)


def overlap_fraction(to_volume: Tensor, size: Size, samples: int = 24) -> float:
    """Estimate by counting points which fraction of the first view's volume the second view (2, 3, 4) covers."""
    a, b = to_volume[:1], to_volume[1:]
    low, high = common_box(a, b, size)
    points = lattice_points(a, b, size, (samples, samples, samples), 1)
    shared = inside(points, b, size)
    box = float((high - low).clamp(min=0).prod())
    return box / float(torch.tensor(size).prod()) * float(shared.double().mean())
