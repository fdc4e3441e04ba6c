"""Block masks: which blocks of a view the student does not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from viewalign.utils.precision import at_least_float32, send

Size = tuple[int, int, int]


@dataclass(frozen=True)
class BlockMask:
    """Which blocks a network does not see.

    Attributes:
        hidden: (N, blocks) bool, in raster order, on the network's device.
        kept: how many blocks of each image are seen; all images have as many. It is counted where masks are drawn: a
            GPU that was asked for it would have to finish its work first.
    """

    hidden: Tensor
    kept: int


def draw_masks(generators: Sequence[np.random.Generator], blocks: int, ratio: float, device: torch.device) -> BlockMask:
    """Draw which of its blocks each image hides, from its own generator."""
    rows = np.stack([sample_mask(rng, blocks, ratio) for rng in generators])
    return BlockMask(send(torch.from_numpy(rows), device), blocks - int(rows[0].sum()))


def block_grid(size: Size, block: Size) -> Size:
    """Return how many blocks cover a view per axis; the last one may stick out."""
    return (-(-size[0] // block[0]), -(-size[1] // block[1]), -(-size[2] // block[2]))


def sample_mask(rng: np.random.Generator, blocks: int, ratio: float) -> NDArray[np.bool_]:
    """Hide exactly round(ratio x blocks) of `blocks` blocks, chosen at random; at least one stays seen."""
    hidden = min(round(ratio * blocks), blocks - 1)
    mask = np.zeros(blocks, dtype=bool)
    mask[rng.permutation(blocks)[:hidden]] = True
    return mask


def to_voxels(mask: Tensor, size: Size, block: Size) -> Tensor:
    """Spread block masks (N, blocks), raster order, over voxels: (N, 1, D, H, W) bool."""
    grid = block_grid(size, block)
    voxels = mask.view(-1, 1, *grid)
    for axis, side in enumerate(block):
        voxels = voxels.repeat_interleave(side, dim=2 + axis)
    return voxels[..., : size[0], : size[1], : size[2]]


def mask_images(images: Tensor, mask: Tensor, block: Size) -> Tensor:
    """Return images (N, C, D, H, W) with the masked blocks zeroed."""
    d, h, w = images.shape[2:]
    return images.masked_fill(to_voxels(mask, (d, h, w), block), 0.0)


def kept_tokens(mask: BlockMask) -> Tensor:
    """Return the indices (N, kept), ascending, of the tokens that are not hidden."""
    return torch.argsort(mask.hidden.to(torch.uint8), dim=1, stable=True)[:, : mask.kept]


class SparseMask:
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


def make_sparse(encoder: nn.Module) -> SparseMask:
    """Make an encoder skip what is hidden; names and values of its weights stay. Returns what tells it."""
    seen = SparseMask()

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
    values, share = at_least_float32(maps), seen.to(torch.promote_types(maps.dtype, torch.float32))
    count = share.sum((2, 3, 4), keepdim=True).clamp(min=1)
    mean = (values * share).sum((2, 3, 4), keepdim=True) / count
    centred = (values - mean) * share
    variance = centred.square().sum((2, 3, 4), keepdim=True) / count
    out = centred * torch.rsqrt(variance + eps)
    if weight is not None and bias is not None:
        out = (out * weight.view(1, -1, 1, 1, 1) + bias.view(1, -1, 1, 1, 1)) * share
    return out.to(maps.dtype)
