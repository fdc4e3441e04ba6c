"""A grid of neighbouring views and further ones that lie somewhere over it: the layout of VoCo (arXiv:2402.17300)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from viewalign.views import affines
from viewalign.views.drawing import Drawing, Drawn, draw_single

Size = tuple[int, int, int]


def draw_grid(
    rng: np.random.Generator,
    shape: Size,
    drawing: Drawing,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    grid: Size = (1, 4, 4),
    targets: int = 4,
) -> Drawn:
    """Draw `targets` views anywhere within a region, then the views of the grid that tile it, in raster order.

    All lie in one frame, so that the share of a target in a cell of the grid is that of two boxes (`overlaps`).

    Args:
        rng, shape, drawing, spacing: as for `drawing.draw_pair`.
        grid: how many views tile the region along (D, H, W).
        targets: how many views lie anywhere within it, at whole voxels.
    """
    size = np.array(drawing.size)
    region = tuple(int(n) for n in size * np.array(grid))
    frame = draw_single(rng, shape, Drawing(**{**vars(drawing), "size": (region[0], region[1], region[2])}), spacing)
    room = np.array(region) - size
    free = rng.integers(0, room + 1, (targets, 3))
    tiles = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 3) * size
    starts = torch.from_numpy(np.concatenate([free, tiles]).astype(np.float64))
    shift = affines.apply(frame, starts)
    return Drawn(torch.cat([frame[None, :, :3].expand(len(starts), 3, 3), shift[:, :, None]], dim=2), 1.0)


def overlaps(to_volume: Tensor, size: Size, targets: int) -> Tensor:
    """Return which share of each target lies in each cell of the grid, (B, targets, cells) float64 in [0, 1].

    Args:
        to_volume: (V, B, 3, 4) of views drawn by `draw_grid`: one frame, targets first.
        size: (D, H, W) of a view.
        targets: how many of the views are targets.
    """
    inverse = affines.invert(to_volume[targets])
    starts = torch.stack([affines.compose(inverse, one)[..., 3] for one in to_volume], dim=1)
    extent = torch.tensor(size, dtype=torch.float64)
    apart = (starts[:, :targets, None] - starts[:, None, targets:]).abs()
    return ((extent - apart).clamp(min=0) / extent).prod(-1)
