"""Resize feature maps to a common grid without shifting their content.

Finer maps are averaged over blocks of cells; coarser maps are interpolated linearly between cell centres and
extrapolated beyond the outermost ones. Both map a linear ramp to a linear ramp; replicating cells would not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from viewalign.utils.precision import at_least_float32, full_precision
from viewalign.utils.shapes import Size


def common_grid(grids: Sequence[Size], limit: int = 16) -> Size:
    """Return the finest grid of at most `limit` cells per axis that all maps can be resized to."""
    if not grids:
        raise ValueError("common_grid needs at least one grid")

    def pick(axis: int) -> int:
        sizes = [grid[axis] for grid in grids]
        return max((size for size in sizes if size <= limit), default=min(sizes))

    return (pick(0), pick(1), pick(2))


def resize_matrix(cells_in: int, cells_out: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the float64 matrix (cells_out, cells_in) that resizes one axis; an axis of one cell is repeated.

    It is computed on `device`: copying it there would synchronise with the GPU.

    Raises:
        ValueError: the axis would shrink by a factor that is not an integer.
    """
    if cells_in % cells_out == 0:
        block = cells_in // cells_out
        return torch.eye(cells_out, dtype=torch.float64, device=device).repeat_interleave(block, dim=1) / block
    if cells_in == 1:
        return torch.ones(cells_out, 1, dtype=torch.float64, device=device)
    if cells_in > cells_out:
        raise ValueError(f"an axis of {cells_in} cells cannot be resized to {cells_out} without shifting its content")
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
    """Resize (N, C, d, h, w) to (N, C, *grid), in float32 or float64; exact for linear ramps."""
    blocks = [n // cells if n % cells == 0 else 1 for n, cells in zip(features.shape[2:], grid, strict=True)]
    out = at_least_float32(features) if blocks == [1, 1, 1] else _BlockMean.apply(features, blocks)
    for axis, cells in enumerate(grid):
        if out.shape[2 + axis] != cells:
            matrix = resize_matrix(out.shape[2 + axis], cells, out.device).to(out.dtype)
            out = torch.tensordot(out, matrix, dims=([2 + axis], [1])).movedim(-1, 2 + axis)
    return out


class _BlockMean(torch.autograd.Function):
    """Mean over blocks of cells with float32 sums, without a float32 copy of the input or of its gradient.

    At image resolution these copies would be the largest tensors of a step.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, blocks: Sequence[int]) -> Tensor:
        ctx.blocks, ctx.dtype = blocks, features.dtype
        sums, dtype = features, torch.promote_types(features.dtype, torch.float32)
        for axis, block in enumerate(blocks):
            if block > 1:
                sums = sums.unflatten(2 + axis, (-1, block)).sum(3 + axis, dtype=dtype)
        return sums / math.prod(blocks)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        share = (gradient / math.prod(ctx.blocks)).to(ctx.dtype)
        a, b, c = ctx.blocks
        shape = [*share.shape[:2], share.shape[2], a, share.shape[3], b, share.shape[4], c]
        full = share[:, :, :, None, :, None, :, None].expand(shape)
        return full.flatten(6, 7).flatten(4, 5).flatten(2, 3), None
