"""Read the features of two views at the positions that both show.

A feature grid of G cells over a view of S voxels has the affine `v = (f + 1/2)·S/G - 1/2` from cell to voxel index.
Together with the affines of the views it locates every feature in the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.pooling import valid_fraction
from viewalign.utils.precision import at_least_float32, full_precision, send
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views import affines, lattice


@dataclass(frozen=True)
class SparseInterpolation:
    """Linear interpolation of feature grids as a sparse matrix: each output row is a weighted sum of K cells.

    Attributes:
        index: (rows, K) cell indices, counted in raster order through all images of a batch.
        weight: (rows, K) float64.
    """

    index: Tensor
    weight: Tensor

    @full_precision
    def __call__(self, features: Tensor) -> Tensor:
        """Interpolate features (N, C, d, h, w); returns (rows, C) in float32, or float64 for float64 features.

        Differentiable in the features. `embedding_bag` needs no copy of all corners: five times faster, forward and
        backward, than gathering eight corners per point (docs/benchmarks.md).
        """
        rows = at_least_float32(features.flatten(2).transpose(1, 2).reshape(-1, features.shape[1]))
        return F.embedding_bag(self.index, rows, mode="sum", per_sample_weights=self.weight.to(rows.dtype))


@dataclass(frozen=True)
class Correspondence:
    """Positions that pairs of views share, to be read from any of their feature maps.

    Attributes:
        interpolations: for each feature grid, from the cells of both views' images to the lattice cells.
        weight: (B, cells) fraction of each cell's points that count.
        point_weight: (B, P) 1 where a point counts, else 0.
        cells: lattice cells per axis.
    """

    interpolations: tuple[SparseInterpolation, ...]
    weight: Tensor
    point_weight: Tensor
    cells: Size

    def read(self, features: Sequence[Tensor]) -> Tensor:
        """Read features at the shared positions.

        Args:
            features: for each grid (2·B, C, d, h, w), the first views of all pairs before the second views.

        Returns:
            (2, B, cells, ΣC), float32 or float64: the mean over the points of each cell that count, 0 if none does.
        """
        columns = [read(maps) for maps, read in zip(features, self.interpolations, strict=True)]
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
    """Find the positions that two views share on each of their feature grids.

    A point counts if, on every grid and in both views, its eight neighbouring cells exist and are valid by half or
    more. A grid so coarse that fewer than half of a pair's points would count is extrapolated at its border instead.

    Args:
        to_volume_a, to_volume_b: (B, 3, 4) float64 affines of the views, on the CPU in training.
        size: (D, H, W) of a view in voxels.
        grids: (d, h, w) of each feature map to be read.
        valid: (2, B, 1, D, H, W) bool, false where a view shows nothing of the volume; None means all valid. Its device
            is that of the result.
        cells: lattice cells per axis, reduced to the finest grid's.
        samples: points per axis and cell.
    """
    finest = tuple(max(grid[k] for grid in grids) for k in range(3))
    wanted = (cells, cells, cells) if isinstance(cells, int) else cells
    counts = (min(wanted[0], finest[0]), min(wanted[1], finest[1]), min(wanted[2], finest[2]))
    points = lattice.lattice_points(to_volume_a, to_volume_b, size, counts, samples)
    maps = torch.stack([to_volume_a, to_volume_b])
    both = lattice.inside(points, to_volume_b, size)  # all are inside view a
    used, found = both, []
    for grid in grids:
        where = volume_to_grid(points, maps, size, grid)
        exists = _has_neighbours(where, grid).all(0) & both
        enough = exists.sum(1, keepdim=True) * 2 >= both.sum(1, keepdim=True)
        used = used & torch.where(enough, exists, both)
        # Points beyond the outer edges are not used; clamping keeps their coordinates from overflowing.
        found.append(torch.stack([where[..., k].clamp(-0.5, n - 0.5) for k, n in enumerate(grid)], dim=-1))
    device = to_volume_a.device if valid is None else valid.device
    used, coordinates = send(used, device), send(torch.stack(found), device).unbind()
    if valid is not None:
        for where, grid in zip(coordinates, grids, strict=True):
            used = used & (_neighbour_validity(valid, where, grid) >= 0.5 - 1e-6).all(0)
    point_weight = used.double()
    weight = _group_by_cell(point_weight, counts, samples).mean(-1).float()
    interpolations = [
        average_over_cells(linear_interpolation(where.flatten(0, 1), grid), point_weight.repeat(2, 1), counts, samples)
        for where, grid in zip(coordinates, grids, strict=True)
    ]
    return Correspondence(tuple(interpolations), weight, point_weight, counts)


def view_points(cells: Tensor, grid: Size, to_volume: Tensor, size: Size) -> Tensor:
    """Return the volume coordinates (..., M, 3) of cells (..., M), numbered in raster order, of feature grids of views.

    Args:
        cells: numbers of cells, int64 on the CPU.
        grid: (d, h, w) of the feature grid.
        to_volume: (..., 3, 4) of the views.
        size: (D, H, W) of a view in voxels.
    """
    index = torch.stack([cells // (grid[1] * grid[2]), cells // grid[2] % grid[1], cells % grid[2]], dim=-1).double()
    ratio = torch.tensor([s / g for s, g in zip(size, grid, strict=True)], dtype=index.dtype)
    return affines.apply(to_volume, (index + 0.5) * ratio - 0.5)


def find_points(
    points: Tensor, to_volume: Tensor, size: Size, grid: Size, valid: Tensor
) -> tuple[SparseInterpolation, Tensor]:
    """Find points of a volume in the feature grids of views, of any scale and rotation.

    A point counts as in `find_correspondences`: its eight neighbouring cells exist and are valid by half or more, or,
    if that holds for fewer than half of the points inside a view, it lies inside and the grid is extrapolated.

    Args:
        points: (V, B, P, 3) in voxel indices of the volumes, float64, on the CPU in training.
        to_volume: (V, B, 3, 4) of the views.
        size: (D, H, W) of a view in voxels.
        grid: (d, h, w) of the feature grid.
        valid: (V, B, 1, D, H, W) bool; its device is that of the result.

    Returns:
        The interpolation from the cells of V·B images, first views first, to V·B·P rows, and which points count,
        (V, B, P) bool.
    """
    where = volume_to_grid(points, to_volume, size, grid)
    within = lattice.inside(points, to_volume, size)
    exists = _has_neighbours(where, grid) & within
    enough = exists.sum(-1, keepdim=True) * 2 >= within.sum(-1, keepdim=True)
    used = torch.where(enough, exists, within)
    where = torch.stack([where[..., k].clamp(-0.5, n - 0.5) for k, n in enumerate(grid)], dim=-1)
    where, used = send(where, valid.device), send(used, valid.device)
    used = used & (_neighbour_validity(valid, where, grid) >= 0.5 - 1e-6)
    return linear_interpolation(where.flatten(0, 1), grid), used


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
    """Sample one feature map of each view (B, C, d, h, w) at the positions that both views show.

    For the other arguments see `find_correspondences`.

    Returns:
        Two tensors (B, cells, C) whose rows correspond, and the weight (B, cells) of each row in [0, 1].

    Example:
        >>> pair = sample_views(image, size=(64, 64, 64))
        >>> a, b = (encoder(view) for view in pair.views)
        >>> rows_a, rows_b, weight = align(a, b, *pair.to_volume, pair.size, pair.valid)
    """
    found = find_correspondences(to_volume_a, to_volume_b, size, [spatial_size(features_a)], valid, cells, samples)
    a, b = found.read([torch.cat([features_a, features_b])])
    return a, b, found.weight


def volume_to_grid(points: Tensor, to_volume: Tensor, size: Size, grid: Size) -> Tensor:
    """Map volume points (B, P, 3) to cell indices (V, B, P, 3) of the feature grids of views (V, B, 3, 4)."""
    index = affines.apply(affines.invert(to_volume), points)
    ratio = torch.tensor([g / s for g, s in zip(grid, size, strict=True)], dtype=index.dtype, device=index.device)
    return (index + 0.5) * ratio - 0.5


def linear_interpolation(where: Tensor, grid: Size) -> SparseInterpolation:
    """Return the trilinear weights of points (N, P, 3) in N grids, extrapolated linearly past the border.

    Coordinates are cell indices (d, h, w) with centres at integers. An axis of one cell has the same value everywhere.
    """
    # Sizes of the grid stay Python numbers: a tensor of them would be copied to the GPU each time.
    images = torch.arange(where.shape[0], device=where.device) * (grid[0] * grid[1] * grid[2])
    index, weight = images[:, None, None], where.new_ones(1, dtype=torch.float64)
    for axis, stride in enumerate((grid[1] * grid[2], grid[2], 1)):
        several = grid[axis] > 1
        base = where[..., axis].floor().long().clamp(0, max(grid[axis] - 2, 0))
        part = (where[..., axis].double() - base) * several
        index = _outer(index, torch.add, torch.stack([base, base + several], dim=-1) * stride)
        weight = _outer(weight, torch.mul, torch.stack([1 - part, part], dim=-1))
    return SparseInterpolation(index.flatten(0, 1), weight.flatten(0, 1))


def _outer(columns: Tensor, combine: Callable[[Tensor, Tensor], Tensor], pair: Tensor) -> Tensor:
    """Combine every column (..., K) with both of a pair (..., 2), the pair running fastest: (..., 2K)."""
    return combine(columns[..., None], pair[..., None, :]).flatten(-2)


def average_over_cells(
    points: SparseInterpolation, point_weight: Tensor, cells: Size, samples: int
) -> SparseInterpolation:
    """Average interpolated points over each cell's points that count; `point_weight` is (N, P)."""
    weight = _group_by_cell(point_weight, cells, samples)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
    order = torch.arange(point_weight.numel(), device=weight.device).view_as(point_weight)
    rows = _group_by_cell(order, cells, samples).flatten(0, 1)
    combined = points.weight[rows] * weight.flatten(0, 1)[..., None]
    return SparseInterpolation(points.index[rows].flatten(1), combined.flatten(1))


def sample(features: Tensor, where: Tensor) -> Tensor:
    """Interpolate features (N, C, d, h, w) linearly at cell indices (N, P, 3); returns (N, P, C)."""
    read = linear_interpolation(where, spatial_size(features))
    out: Tensor = read(features).unflatten(0, where.shape[:2])
    return out


def roi_align_3d(features: Tensor, boxes: Tensor, size: Size, cells: Size = (7, 7, 7), samples: int = 2) -> Tensor:
    """Average features over the cells of one box per image: 3D ROI-Align with half-pixel centres.

    Args:
        features: (B, C, d, h, w), any grid over the image.
        boxes: (B, 2, 3) lower and upper corner as voxel edges of the image; `[-1/2, S - 1/2]` is the whole image.
        size: (D, H, W) of the image in voxels.
        cells: output cells per axis.
        samples: points per axis and cell.

    Returns:
        (B, C, *cells); differentiable in the features, which are extrapolated linearly past their outermost centres.

    Example:
        >>> boxes = torch.tensor([[[-0.5] * 3, [31.5] * 3]], dtype=torch.float64)  # the first 32 voxels per axis
        >>> roi_align_3d(torch.rand(1, 8, 16, 16, 16), boxes, size=(64, 64, 64)).shape
        torch.Size([1, 8, 7, 7, 7])
    """
    eye = affines.identity(features.shape[0]).to(boxes.device)
    axes = [
        boxes[:, 0, k, None]
        + (boxes[:, 1, k] - boxes[:, 0, k])[:, None]
        * ((torch.arange(n * samples, dtype=torch.float64, device=boxes.device) + 0.5) / (n * samples))
        for k, n in enumerate(cells)
    ]
    points = torch.stack([torch.cartesian_prod(*(axis[b] for axis in axes)) for b in range(features.shape[0])])
    grid = spatial_size(features)
    where = volume_to_grid(points, eye[None], size, grid)[0]
    ones = torch.ones(where.shape[:2], dtype=torch.float64, device=where.device)
    values = average_over_cells(linear_interpolation(where, grid), ones, cells, samples)(features)
    pooled: Tensor = values.unflatten(0, (features.shape[0], *cells)).movedim(-1, 1)
    return pooled


def _has_neighbours(where: Tensor, grid: Size) -> Tensor:
    axes = zip(where.unbind(-1), grid, strict=True)
    return torch.stack([(x >= -1e-6) & (x <= n - 1 + 1e-6) | (n == 1) for x, n in axes]).all(0)


def _neighbour_validity(valid: Tensor, where: Tensor, grid: Size) -> Tensor:
    """Return the mean valid fraction of each point's eight neighbours, (2, B, P)."""
    fraction = valid_fraction(valid.flatten(0, 1), grid)
    middles = where.floor() + 0.5
    middles = torch.stack([middles[..., k].clamp(min=0.5).clamp(max=n - 1.5) for k, n in enumerate(grid)], dim=-1)
    out: Tensor = sample(fraction, middles.flatten(0, 1))[..., 0].unflatten(0, where.shape[:2])
    return out


def _group_by_cell(values: Tensor, cells: Size, samples: int) -> Tensor:
    """Regroup values of lattice points in raster order (..., P) into (..., cells, points of a cell)."""
    parts: Tensor = values.unflatten(-1, (cells[0], samples, cells[1], samples, cells[2], samples))
    lead = values.dim() - 1
    order = [*range(lead), lead, lead + 2, lead + 4, lead + 1, lead + 3, lead + 5]
    return parts.permute(order).flatten(lead + 3).flatten(lead, lead + 2)
