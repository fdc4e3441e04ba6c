"""The same places in two views' features: the room where "aligned" is made true.

Each feature grid has an affine of its own to the view, `v = (f + 1/2)·S/G - 1/2`: a cell of a grid of G cells stands
for S/G voxels and its centre lies at theirs. Together with the views' affines that is all there is to alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.precision import full_precision
from viewalign.views import affines, lattice

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Correspondence:
    """Places that two views share, ready to be read from any features of them.

    Attributes:
        coordinates: per feature grid, (2, B, P, 3): where each lattice point lies on the grid of either view.
        weight: (B, cells): the share of a cell's points that count.
        point_weight: (B, P): 1 where a point counts, else 0.
        cells, samples: as in `lattice.Lattice`.
    """

    coordinates: tuple[Tensor, ...]
    weight: Tensor
    point_weight: Tensor
    cells: Size
    samples: int

    def read(self, features: Sequence[Tensor]) -> Tensor:
        """Read features at the shared places.

        Args:
            features: per grid, (2·B, C, d, h, w), the first view's images before the second's.

        Returns:
            (2, B, cells, ΣC) in float32 or better: the mean over each cell's points that count, zero where none does.
        """
        columns = []
        for maps, where in zip(features, self.coordinates, strict=True):
            values = sample(maps, where.flatten(0, 1))
            columns.append(values.unflatten(0, where.shape[:2]))
        return pool_cells(torch.cat(columns, dim=-1), self.point_weight, self.cells, self.samples)


def correspond(
    to_volume_a: Tensor,
    to_volume_b: Tensor,
    size: Size,
    grids: Sequence[Size],
    valid: Tensor | None = None,
    cells: int = 7,
    samples: int = 2,
) -> Correspondence:
    """Find the places that two views share on each of their feature grids.

    Args:
        to_volume_a, to_volume_b: (B, 3, 4) affines of the views.
        size: (D, H, W) of a view in voxels.
        grids: (d, h, w) of each feature map that will be read.
        valid: (2, B, 1, D, H, W), false where a view shows no voxel of the volume; None means all valid.
        cells, samples: the lattice; cells per axis are at most those of the finest grid.

    Coordinates are worked out in float64 where the affines are, on the CPU in training, and sent to where `valid` is.

    A point counts if, on every grid and in both views, its eight neighbours exist and at least half of them is valid.
    A grid so coarse that it would leave a pair fewer than half of its points continues linearly past its border
    instead.
    """
    finest = tuple(max(grid[k] for grid in grids) for k in range(3))
    cell_counts = (min(cells, finest[0]), min(cells, finest[1]), min(cells, finest[2]))
    shared = lattice.between(to_volume_a, to_volume_b, size, cell_counts, samples)
    maps = torch.stack([to_volume_a, to_volume_b])
    both = lattice.inside(shared.points, to_volume_a, size) & lattice.inside(shared.points, to_volume_b, size)
    device = to_volume_a.device if valid is None else valid.device
    counts, coordinates = both.to(device), []
    for grid in grids:
        where = to_grid(shared.points, maps, size, grid)
        exists = _has_neighbours(where, grid).all(0) & both
        enough = exists.sum(1, keepdim=True) * 2 >= both.sum(1, keepdim=True)
        counts = counts & torch.where(enough, exists, both).to(device)
        where = _within_reach(where, grid).to(device)
        if valid is not None:
            counts = counts & (_support(valid, where, grid) >= 0.5 - 1e-6).all(0)
        coordinates.append(where)
    point_weight = counts.float()
    weight = _cells_of(point_weight, cell_counts, samples).mean(-1)
    return Correspondence(tuple(coordinates), weight, point_weight, cell_counts, samples)


def align(
    features_a: Tensor,
    features_b: Tensor,
    to_volume_a: Tensor,
    to_volume_b: Tensor,
    size: Size,
    valid: Tensor | None = None,
    cells: int = 7,
    samples: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring one feature map of each view (B, C, d, h, w) onto the places both share.

    Returns:
        Two tensors (B, cells, C), row for row the same place, and the weight (B, cells) of each row.
    """
    grid = (features_a.shape[2], features_a.shape[3], features_a.shape[4])
    places = correspond(to_volume_a, to_volume_b, size, [grid], valid, cells, samples)
    a, b = places.read([torch.cat([features_a, features_b])])
    return a, b, places.weight


def to_grid(points: Tensor, to_volume: Tensor, size: Size, grid: Size) -> Tensor:
    """Map volume points (B, P, 3) into the feature grids of views (V, B, 3, 4); returns (V, B, P, 3)."""
    index = affines.apply(affines.invert(to_volume), points)
    ratio = torch.tensor([g / s for g, s in zip(grid, size, strict=True)], dtype=index.dtype, device=index.device)
    return (index + 0.5) * ratio - 0.5


@full_precision
def sample(features: Tensor, where: Tensor) -> Tensor:
    """Read features linearly at grid coordinates; past the border the last two cells of an axis are continued.

    Args:
        features: (N, C, d, h, w), at least two cells per axis.
        where: (N, P, 3) coordinates in (d, h, w) order, cell centres at integers.

    Returns:
        (N, P, C), in float32 unless the features are float64; differentiable in the features.
    """
    n, channels, *grid = features.shape
    kind = torch.promote_types(features.dtype, torch.float32)
    rows = features.to(kind).flatten(2).transpose(1, 2).reshape(-1, channels)
    ends = torch.tensor(grid, device=where.device) - 2
    base = torch.minimum(where.floor().long().clamp(min=0), ends)
    part = (where - base).to(kind)
    strides = torch.tensor([grid[1] * grid[2], grid[2], 1], device=where.device)
    first = (base * strides).sum(-1) + torch.arange(n, device=where.device)[:, None] * (grid[0] * grid[1] * grid[2])
    out = rows.new_zeros(first.numel(), channels)
    for corner in product((0, 1), repeat=3):
        share = torch.ones_like(part[..., 0])
        for axis, side in enumerate(corner):
            share = share * (part[..., axis] if side else 1 - part[..., axis])
        step = sum(side * int(stride) for side, stride in zip(corner, (grid[1] * grid[2], grid[2], 1), strict=True))
        out = out + rows.index_select(0, (first + step).flatten()) * share.flatten()[:, None]
    return out.view(*first.shape, channels)


def pool_cells(values: Tensor, point_weight: Tensor, cells: Size, samples: int) -> Tensor:
    """Average point values (V, B, P, C) over each cell's points that count; returns (V, B, cells, C)."""
    share = _cells_of(point_weight, cells, samples).to(values.dtype)
    share = share / share.sum(-1, keepdim=True).clamp(min=1)
    grouped = _cells_of(values.movedim(-1, -2), cells, samples)
    return (grouped * share[None, :, None]).sum(-1).movedim(-2, -1)


def roi_align_3d(features: Tensor, boxes: Tensor, size: Size, cells: Size = (7, 7, 7), samples: int = 2) -> Tensor:
    """Average features over the cells of one box per image: 3D ROI-Align with half-pixel centres.

    Args:
        features: (B, C, d, h, w), any grid over the image.
        boxes: (B, 2, 3): lower and upper corner as voxel edges of the image, so that `[-1/2, S - 1/2]` is all of it.
        size: (D, H, W) of the image in voxels.
        cells: output cells per axis.
        samples: points per axis and cell.

    Returns:
        (B, C, *cells); differentiable in the features. Features are continued linearly past their outermost centres.
    """
    eye = affines.identity(features.shape[0]).to(boxes.device)
    axes = [
        boxes[:, 0, k, None]
        + (boxes[:, 1, k] - boxes[:, 0, k])[:, None]
        * ((torch.arange(n * samples, dtype=torch.float64, device=boxes.device) + 0.5) / (n * samples))
        for k, n in enumerate(cells)
    ]
    grids = [torch.cartesian_prod(*(axis[b] for axis in axes)) for b in range(features.shape[0])]
    grid = (features.shape[2], features.shape[3], features.shape[4])
    where = to_grid(torch.stack(grids), eye[None], size, grid)[0]
    values = sample(features, where)
    ones = torch.ones(values.shape[:2], dtype=values.dtype, device=values.device)
    pooled: Tensor = pool_cells(values[None], ones, cells, samples)[0].transpose(1, 2).unflatten(2, cells)
    return pooled


def valid_share(valid: Tensor, grid: Size) -> Tensor:
    """Return which share of each grid cell is valid: (N, 1, D, H, W) booleans to (N, 1, d, h, w) in [0, 1]."""
    return F.adaptive_avg_pool3d(valid.float(), grid)


def _has_neighbours(where: Tensor, grid: Size) -> Tensor:
    top = torch.tensor(grid, dtype=where.dtype, device=where.device) - 1
    return ((where >= -1e-6) & (where <= top + 1e-6)).all(-1)


def _within_reach(where: Tensor, grid: Size) -> Tensor:
    """Hold coordinates within the grid's outer edges: what lies beyond counts for nothing and must not overflow."""
    top = torch.tensor(grid, dtype=where.dtype, device=where.device) - 0.5
    return torch.minimum(where.clamp(min=-0.5), top)


def _support(valid: Tensor, where: Tensor, grid: Size) -> Tensor:
    """Return the mean valid share of each point's eight neighbours, (2, B, P)."""
    share = valid_share(valid.flatten(0, 1), grid)
    middles = where.floor() + 0.5
    top = torch.tensor(grid, dtype=where.dtype, device=where.device) - 1.5
    middles = torch.minimum(middles.clamp(min=0.5), top)
    support: Tensor = sample(share, middles.flatten(0, 1))[..., 0].unflatten(0, where.shape[:2])
    return support


def _cells_of(values: Tensor, cells: Size, samples: int) -> Tensor:
    """Regroup a raster of points (..., P) into (..., cells, points of a cell)."""
    parts: Tensor = values.unflatten(-1, (cells[0], samples, cells[1], samples, cells[2], samples))
    lead = values.dim() - 1
    order = [*range(lead), lead, lead + 2, lead + 4, lead + 1, lead + 3, lead + 5]
    return parts.permute(order).flatten(lead + 3).flatten(lead, lead + 2)
