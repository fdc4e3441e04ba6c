"""Dense maps from one view into another: an affine with a field of displacements under it, in voxels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.precision import full_precision
from viewalign.views import affines

Size = tuple[int, int, int]


def centres(grid: Size, size: Size, like: Tensor) -> Tensor:
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
    places = centres(grid, size, affine).expand(affine.shape[0], *grid, 3)
    if field is not None:
        places = places + field.movedim(1, -1)
    sent: Tensor = affines.apply(affine, places.flatten(1, 3)).unflatten(1, grid)
    return sent


def to_cells(places: Tensor, grid: Size, size: Size) -> Tensor:
    """Return voxel indices (..., 3) of a view of `size` voxels as indices of a grid's cells."""
    axes = zip(places.unbind(-1), grid, size, strict=True)
    return torch.stack([(place + 0.5) * (n / voxels) - 0.5 for place, n, voxels in axes], dim=-1)


def draw_field(rng: np.random.Generator, size: Size, amplitude: float, knots: int = 4) -> Tensor:
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
