"""Feature maps of several sizes on one grid, without moving what they show.

Finer maps are averaged over whole blocks; coarser ones are interpolated linearly between cell centres and continued
linearly past the outermost ones. Both keep a linear ramp a linear ramp, which repeating cells does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from viewalign.utils.precision import at_least_float32, full_precision

Size = tuple[int, int, int]


def common_grid(grids: Sequence[Size], limit: int = 16) -> Size:
    """Choose a grid that every map reaches by whole blocks or interpolation: per axis the finest of at most `limit`."""
    if not grids:
        raise ValueError("common_grid needs at least one grid")

    def pick(axis: int) -> int:
        sizes = [grid[axis] for grid in grids]
        return max((size for size in sizes if size <= limit), default=min(sizes))

    return (pick(0), pick(1), pick(2))


def resize_matrix(cells_in: int, cells_out: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the (cells_out, cells_in) matrix that resizes one axis; float64.

    It is worked out on `device`, for a copy of it would make the program wait for a GPU.

    Raises:
        ValueError: a finer axis that is no whole multiple.

    An axis of a single cell is repeated: it knows no place along itself.
    """
    if cells_in % cells_out == 0:
        block = cells_in // cells_out
        return torch.eye(cells_out, dtype=torch.float64, device=device).repeat_interleave(block, dim=1) / block
    if cells_in == 1:
        return torch.ones(cells_out, 1, dtype=torch.float64, device=device)
    if cells_in > cells_out:
        raise ValueError(f"an axis of {cells_in} cells cannot be brought to {cells_out} without moving what it shows")
    rows = torch.arange(cells_out, device=device)
    centres = (rows.double() + 0.5) * cells_in / cells_out - 0.5
    base = centres.floor().clamp(0, cells_in - 2).long()
    part = centres - base
    matrix = torch.zeros(cells_out, cells_in, dtype=torch.float64, device=device)
    matrix[rows, base] = 1 - part
    matrix[rows, base + 1] = part
    return matrix


@full_precision
def resize(features: Tensor, grid: Size) -> Tensor:
    """Bring (N, C, d, h, w) to (N, C, *grid); linear, hence exact for ramps; float32 or better."""
    blocks = [n // cells if n % cells == 0 else 1 for n, cells in zip(features.shape[2:], grid, strict=True)]
    out = at_least_float32(features) if blocks == [1, 1, 1] else _BlockMeans.apply(features, blocks)
    for axis, cells in enumerate(grid):
        if out.shape[2 + axis] != cells:
            matrix = resize_matrix(out.shape[2 + axis], cells, out.device).to(out.dtype)
            out = torch.tensordot(out, matrix, dims=([2 + axis], [1])).movedim(-1, 2 + axis)
    return out


class _BlockMeans(torch.autograd.Function):
    """Means over blocks of cells, in float32 or better, of which no copy of the whole map is made in that precision.

    At the resolution of the image such a copy would be the largest tensor of a step, and its gradient as large.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, blocks: Sequence[int]) -> Tensor:
        """Average (N, C, d, h, w) over blocks."""
        ctx.blocks, ctx.dtype = blocks, features.dtype
        sums, kind = features, torch.promote_types(features.dtype, torch.float32)
        for axis, block in enumerate(blocks):
            if block > 1:
                sums = sums.unflatten(2 + axis, (-1, block)).sum(3 + axis, dtype=kind)
        return sums / math.prod(blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Hand each cell its share of the mean's gradient."""
        share = (gradient / math.prod(ctx.blocks)).to(ctx.dtype)
        a, b, c = ctx.blocks
        shape = [*share.shape[:2], share.shape[2], a, share.shape[3], b, share.shape[4], c]
        whole = share[:, :, :, None, :, None, :, None].expand(shape)
        return whole.flatten(6, 7).flatten(4, 5).flatten(2, 3), None
