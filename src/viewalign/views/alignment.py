"""The same places in two views' features: the room where "aligned" is made true.

Each feature grid has an affine of its own to the view, `v = (f + 1/2)·S/G - 1/2`: a cell of a grid of G cells stands
for S/G voxels and its centre lies at theirs. Together with the views' affines that is all there is to alignment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32, full_precision, send
from viewalign.views import affines, lattice

Size = tuple[int, int, int]


@dataclass(frozen=True)
class SparseInterpolation:
    """A linear read of a feature grid: each output row is a weighted sum of few cells.

    Attributes:
        index: (rows, K) cells, numbered through all images of a batch in raster order.
        share: (rows, K) float64, how much of each cell goes into the row.
    """

    index: Tensor
    share: Tensor


@dataclass(frozen=True)
class Correspondence:
    """Places that two views share, ready to be read from any features of them.

    Attributes:
        bags: per feature grid, how its cells make up the lattice's cells: the first view's images, then the second's.
        weight: (B, cells): the share of a cell's points that count.
        point_weight: (B, P): 1 where a point counts, else 0.
        cells: lattice cells per axis.
    """

    bags: tuple[SparseInterpolation, ...]
    weight: Tensor
    point_weight: Tensor
    cells: Size

    def read(self, features: Sequence[Tensor]) -> Tensor:
        """Read features at the shared places.

        Args:
            features: per grid, (2·B, C, d, h, w), the first view's images before the second's.

        Returns:
            (2, B, cells, ΣC) in float32 or better: the mean over each cell's points that count, zero where none does.
        """
        columns = [interpolate(maps, bag) for maps, bag in zip(features, self.bags, strict=True)]
        out: Tensor = torch.cat(columns, dim=-1).unflatten(0, (2, *self.weight.shape))
        return out


def find_correspondences(
    to_volume_a: Tensor,
    to_volume_b: Tensor,
    size: Size,
    grids: Sequence[Size],
    valid: Tensor | None = None,
    cells: int | Size = 7,
    samples: int = 2,
) -> Correspondence:
    """Find the places that two views share on each of their feature grids.

    Args:
        to_volume_a, to_volume_b: (B, 3, 4) affines of the views.
        size: (D, H, W) of a view in voxels.
        grids: (d, h, w) of each feature map that will be read.
        valid: (2, B, 1, D, H, W), false where a view shows no voxel of the volume; None means all valid.
        cells, samples: the lattice, in all or along (D, H, W); cells per axis are at most those of the finest grid.

    Coordinates are worked out in float64 where the affines are, on the CPU in training, and sent to where `valid` is.

    A point counts if, on every grid and in both views, its eight neighbours exist and at least half of them is valid.
    A grid so coarse that it would leave a pair fewer than half of its points continues linearly past its border
    instead.
    """
    finest = tuple(max(grid[k] for grid in grids) for k in range(3))
    wanted = (cells, cells, cells) if isinstance(cells, int) else cells
    cell_counts = (min(wanted[0], finest[0]), min(wanted[1], finest[1]), min(wanted[2], finest[2]))
    shared = lattice.between(to_volume_a, to_volume_b, size, cell_counts, samples)
    maps = torch.stack([to_volume_a, to_volume_b])
    both = lattice.inside(shared.points, to_volume_a, size) & lattice.inside(shared.points, to_volume_b, size)
    counts, found = both, []
    for grid in grids:
        where = to_grid(shared.points, maps, size, grid)
        exists = _has_neighbours(where, grid).all(0) & both
        enough = exists.sum(1, keepdim=True) * 2 >= both.sum(1, keepdim=True)
        counts = counts & torch.where(enough, exists, both)
        found.append(_within_reach(where, grid))
    device = to_volume_a.device if valid is None else valid.device
    counts, coordinates = send(counts, device), send(torch.stack(found), device).unbind()
    if valid is not None:
        for where, grid in zip(coordinates, grids, strict=True):
            counts = counts & (_support(valid, where, grid) >= 0.5 - 1e-6).all(0)
    point_weight = counts.double()
    weight = _cells_of(point_weight, cell_counts, samples).mean(-1).float()
    bags = [
        average_points(interpolation_at(where.flatten(0, 1), grid), point_weight.repeat(2, 1), cell_counts, samples)
        for where, grid in zip(coordinates, grids, strict=True)
    ]
    return Correspondence(tuple(bags), weight, point_weight, cell_counts)


def align(
    features_a: Tensor,
    features_b: Tensor,
    to_volume_a: Tensor,
    to_volume_b: Tensor,
    size: Size,
    valid: Tensor | None = None,
    cells: int | Size = 7,
    samples: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bring one feature map of each view (B, C, d, h, w) onto the places both share.

    Returns:
        Two tensors (B, cells, C), row for row the same place, and the weight (B, cells) of each row.
    """
    grid = (features_a.shape[2], features_a.shape[3], features_a.shape[4])
    places = find_correspondences(to_volume_a, to_volume_b, size, [grid], valid, cells, samples)
    a, b = places.read([torch.cat([features_a, features_b])])
    return a, b, places.weight


def to_grid(points: Tensor, to_volume: Tensor, size: Size, grid: Size) -> Tensor:
    """Map volume points (B, P, 3) into the feature grids of views (V, B, 3, 4); returns (V, B, P, 3)."""
    index = affines.apply(affines.invert(to_volume), points)
    ratio = torch.tensor([g / s for g, s in zip(grid, size, strict=True)], dtype=index.dtype, device=index.device)
    return (index + 0.5) * ratio - 0.5


def interpolation_at(where: Tensor, grid: Size) -> SparseInterpolation:
    """Say which cells make up points (N, P, 3) of N grids, linearly; past the border the last two cells are continued.

    Coordinates are in (d, h, w) order with cell centres at integers. An axis of a single cell, which a thin view has at
    the bottom of a deep network, knows no place along itself: its value holds everywhere.
    """
    # Numbers of the grid stay Python's: a tensor of them would be copied to a GPU each time.
    images = torch.arange(where.shape[0], device=where.device) * (grid[0] * grid[1] * grid[2])
    index, share = images[:, None, None], where.new_ones(1, dtype=torch.float64)
    for axis, stride in enumerate((grid[1] * grid[2], grid[2], 1)):
        several = grid[axis] > 1
        base = where[..., axis].floor().long().clamp(0, max(grid[axis] - 2, 0))
        part = (where[..., axis].double() - base) * several
        index = _with_each(index, torch.add, torch.stack([base, base + several], dim=-1) * stride)
        share = _with_each(share, torch.mul, torch.stack([1 - part, part], dim=-1))
    return SparseInterpolation(index.flatten(0, 1), share.flatten(0, 1))


def _with_each(columns: Tensor, combine: Callable[[Tensor, Tensor], Tensor], pair: Tensor) -> Tensor:
    """Combine every column (..., K) with both of a pair (..., 2), the pair running fastest: (..., 2K)."""
    return combine(columns[..., None], pair[..., None, :]).flatten(-2)


def average_points(points: SparseInterpolation, point_weight: Tensor, cells: Size, samples: int) -> SparseInterpolation:
    """Average a bag of points over each cell's points that count; `point_weight` is (N, P)."""
    share = _cells_of(point_weight, cells, samples)
    share = share / share.sum(-1, keepdim=True).clamp(min=1)
    order = _cells_of(torch.arange(point_weight.numel(), device=share.device).view_as(point_weight), cells, samples)
    rows = order.flatten(0, 1)
    return SparseInterpolation(
        points.index[rows].flatten(1), (points.share[rows] * share.flatten(0, 1)[..., None]).flatten(1)
    )


@full_precision
def interpolate(features: Tensor, bag: SparseInterpolation) -> Tensor:
    """Read features (N, C, d, h, w); returns (rows, C), in float32 unless the features are float64.

    Differentiable in the features. An embedding bag does it without a copy of every corner: five times faster than
    gathering eight corners of every point, forward and backward (docs/benchmarks.md).
    """
    rows = at_least_float32(features.flatten(2).transpose(1, 2).reshape(-1, features.shape[1]))
    return F.embedding_bag(bag.index, rows, mode="sum", per_sample_weights=bag.share.to(rows.dtype))


def sample(features: Tensor, where: Tensor) -> Tensor:
    """Read features (N, C, d, h, w) linearly at grid coordinates (N, P, 3); returns (N, P, C). See `points_bag`."""
    grid = (features.shape[2], features.shape[3], features.shape[4])
    out: Tensor = interpolate(features, interpolation_at(where, grid)).unflatten(0, where.shape[:2])
    return out


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
    ones = torch.ones(where.shape[:2], dtype=torch.float64, device=where.device)
    values = interpolate(features, average_points(interpolation_at(where, grid), ones, cells, samples))
    pooled: Tensor = values.unflatten(0, (features.shape[0], *cells)).movedim(-1, 1)
    return pooled


def valid_share(valid: Tensor, grid: Size) -> Tensor:
    """Return which share of each grid cell is valid: (N, 1, D, H, W) booleans to (N, 1, d, h, w) in [0, 1]."""
    return F.adaptive_avg_pool3d(valid.float(), grid)


def _has_neighbours(where: Tensor, grid: Size) -> Tensor:
    axes = zip(where.unbind(-1), grid, strict=True)
    return torch.stack([(place >= -1e-6) & (place <= n - 1 + 1e-6) | (n == 1) for place, n in axes]).all(0)


def _within_reach(where: Tensor, grid: Size) -> Tensor:
    """Hold coordinates within the grid's outer edges: what lies beyond counts for nothing and must not overflow."""
    return torch.stack([where[..., k].clamp(-0.5, n - 0.5) for k, n in enumerate(grid)], dim=-1)


def _support(valid: Tensor, where: Tensor, grid: Size) -> Tensor:
    """Return the mean valid share of each point's eight neighbours, (2, B, P)."""
    share = valid_share(valid.flatten(0, 1), grid)
    middles = where.floor() + 0.5
    middles = torch.stack([middles[..., k].clamp(min=0.5).clamp(max=n - 1.5) for k, n in enumerate(grid)], dim=-1)
    support: Tensor = sample(share, middles.flatten(0, 1))[..., 0].unflatten(0, where.shape[:2])
    return support


def _cells_of(values: Tensor, cells: Size, samples: int) -> Tensor:
    """Regroup a raster of points (..., P) into (..., cells, points of a cell)."""
    parts: Tensor = values.unflatten(-1, (cells[0], samples, cells[1], samples, cells[2], samples))
    lead = values.dim() - 1
    order = [*range(lead), lead, lead + 2, lead + 4, lead + 1, lead + 3, lead + 5]
    return parts.permute(order).flatten(lead + 3).flatten(lead, lead + 2)
