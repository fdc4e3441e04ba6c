"""Feature maps of several sizes on one grid, without moving what they show.

Finer maps are averaged over whole blocks; coarser ones are interpolated linearly between cell centres and continued
linearly past the outermost ones. Both keep a linear ramp a linear ramp, which repeating cells does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from viewalign.precision import full_precision, raised

Size = tuple[int, int, int]


def common_grid(grids: Sequence[Size], limit: int = 16) -> Size:
    """Choose a grid that every map reaches by whole blocks or interpolation: per axis the finest of at most `limit`."""
    if not grids:
        raise ValueError("common_grid needs at least one grid")

    def pick(axis: int) -> int:
        sizes = [grid[axis] for grid in grids]
        return max((size for size in sizes if size <= limit), default=min(sizes))

    return (pick(0), pick(1), pick(2))


def resize_matrix(cells_in: int, cells_out: int) -> Tensor:
    """Return the (cells_out, cells_in) matrix that resizes one axis; float64.

    Raises:
        ValueError: a finer axis that is no whole multiple.

    An axis of a single cell is repeated: it knows no place along itself.
    """
    if cells_in % cells_out == 0:
        block = cells_in // cells_out
        return torch.eye(cells_out, dtype=torch.float64).repeat_interleave(block, dim=1) / block
    if cells_in == 1:
        return torch.ones(cells_out, 1, dtype=torch.float64)
    if cells_in > cells_out:
        raise ValueError(f"an axis of {cells_in} cells cannot be brought to {cells_out} without moving what it shows")
    centres = (torch.arange(cells_out, dtype=torch.float64) + 0.5) * cells_in / cells_out - 0.5
    base = centres.floor().clamp(0, cells_in - 2).long()
    part = centres - base
    matrix = torch.zeros(cells_out, cells_in, dtype=torch.float64)
    rows = torch.arange(cells_out)
    matrix[rows, base] = 1 - part
    matrix[rows, base + 1] = part
    return matrix


@full_precision
def resize(features: Tensor, grid: Size) -> Tensor:
    """Bring (N, C, d, h, w) to (N, C, *grid); linear, hence exact for ramps; float32 or better."""
    out = raised(features)
    for axis, cells in enumerate(grid):
        if out.shape[2 + axis] != cells:
            matrix = resize_matrix(out.shape[2 + axis], cells).to(out)
            out = torch.tensordot(out, matrix, dims=([2 + axis], [1])).movedim(-1, 2 + axis)
    return out
