"""A U-Net's encoder that computes as if hidden blocks did not exist: SparK (Tian et al., arXiv:2301.03580).

Sparse convolution of what is seen equals a dense one whose output is zeroed where blocks are hidden, as long as norms
take their statistics from what is seen. Where a map is coarser than the blocks, all of it counts as seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from viewalign.networks.masks import Size, block_grid
from viewalign.precision import raised


class Seen:
    """Which blocks of the images under way are seen; hooks on an encoder read it.

    Attributes:
        blocks: (N, 1, d, h, w) bool, or None while nothing is hidden.
        size, block: of the images and of a block, in voxels.
    """

    def __init__(self) -> None:
        self.blocks: Tensor | None = None
        self.size: Size = (1, 1, 1)
        self.block: Size = (1, 1, 1)

    def set(self, mask: Tensor | None, size: Size, block: Size) -> None:
        """Take masks (N, blocks), true where hidden; None shows everything."""
        self.blocks = None if mask is None else ~mask.view(-1, 1, *block_grid(size, block))
        self.size, self.block = size, block

    def at(self, grid: Size) -> Tensor | None:
        """Return what is seen on a map's grid (N, 1, *grid) bool; None where all counts as seen."""
        if self.blocks is None:
            return None
        voxels = self.blocks
        for axis, cells in enumerate(grid):
            stride = self.size[axis] // cells
            if stride > self.block[axis]:
                return None
            voxels = voxels.repeat_interleave(self.block[axis] // stride, dim=2 + axis)
        return voxels[:, :, : grid[0], : grid[1], : grid[2]]


def make_sparse(encoder: nn.Module) -> Seen:
    """Make an encoder skip what is hidden; names and values of its weights stay. Returns what tells it."""
    seen = Seen()

    def cover(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
        where = seen.at((output.shape[2], output.shape[3], output.shape[4]))
        return output if where is None else output * where

    def normalise(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        where = seen.at((output.shape[2], output.shape[3], output.shape[4]))
        if where is None:
            return output
        assert isinstance(module, nn.InstanceNorm3d)
        return masked_norm(inputs[0], where, module.weight, module.bias, module.eps)

    for module in encoder.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.register_forward_hook(normalise)
        elif isinstance(module, nn.Conv3d | nn.AvgPool3d):
            module.register_forward_hook(cover)
    return seen


def masked_norm(maps: Tensor, seen: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Normalise each channel of each image (N, C, d, h, w) over what is seen (N, 1, d, h, w); 0 elsewhere."""
    values, share = raised(maps), seen.to(torch.promote_types(maps.dtype, torch.float32))
    count = share.sum((2, 3, 4), keepdim=True).clamp(min=1)
    mean = (values * share).sum((2, 3, 4), keepdim=True) / count
    centred = (values - mean) * share
    variance = centred.square().sum((2, 3, 4), keepdim=True) / count
    out = centred * torch.rsqrt(variance + eps)
    if weight is not None and bias is not None:
        out = (out * weight.view(1, -1, 1, 1, 1) + bias.view(1, -1, 1, 1, 1)) * share
    return out.to(maps.dtype)
