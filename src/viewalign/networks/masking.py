"""Block masks of views, and encoders that ignore masked blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from viewalign.utils.precision import at_least_float32, send
from viewalign.utils.shapes import Size, spatial_size


@dataclass(frozen=True)
class BlockMask:
    """Masked blocks of a batch of images.

    Attributes:
        hidden: (N, blocks) bool, true for masked blocks in raster order, on the network's device.
        kept: number of blocks per image that are not masked, the same for all but the whole images. It is counted on
            the CPU: reading it from a GPU would synchronise.
        whole: indices of images of which no block is masked.
    """

    hidden: Tensor
    kept: int
    whole: tuple[int, ...] = ()


def sample_masks(
    generators: Sequence[np.random.Generator], blocks: int, ratio: float, device: torch.device
) -> BlockMask:
    """Sample the masked blocks of each image from its own generator."""
    rows = np.stack([sample_mask(rng, blocks, ratio) for rng in generators])
    return BlockMask(send(torch.from_numpy(rows), device), blocks - int(rows[0].sum()))


def sample_mask(rng: np.random.Generator, blocks: int, ratio: float) -> NDArray[np.bool_]:
    """Mask exactly `count_masked` random blocks; bool (blocks,)."""
    mask = np.zeros(blocks, dtype=bool)
    mask[rng.permutation(blocks)[: count_masked(blocks, ratio)]] = True
    return mask


def count_masked(blocks: int, ratio: float) -> int:
    """Return how many blocks are masked: round(ratio x blocks), but never all of them."""
    return min(round(ratio * blocks), blocks - 1)


def block_grid(size: Size, block: Size) -> Size:
    """Return the number of blocks per axis that cover a view; the last one may extend past it."""
    return (-(-size[0] // block[0]), -(-size[1] // block[1]), -(-size[2] // block[2]))


def to_voxels(mask: Tensor, size: Size, block: Size) -> Tensor:
    """Expand block masks (N, blocks) to voxels, (N, 1, D, H, W) bool."""
    voxels = mask.view(-1, 1, *block_grid(size, block))
    for axis, side in enumerate(block):
        voxels = voxels.repeat_interleave(side, dim=2 + axis)
    return voxels[..., : size[0], : size[1], : size[2]]


def mask_images(images: Tensor, mask: Tensor, block: Size) -> Tensor:
    """Return images (N, C, D, H, W) with masked blocks (N, blocks) set to zero."""
    return images.masked_fill(to_voxels(mask, spatial_size(images), block), 0.0)


def kept_tokens(mask: BlockMask) -> Tensor:
    """Return the indices (N, kept), ascending, of the tokens that are not masked."""
    return torch.argsort(mask.hidden.to(torch.uint8), dim=1, stable=True)[:, : mask.kept]


class SparseMask:
    """The visible blocks of the current images, read by the hooks of a sparse encoder.

    Attributes:
        visible: (N, 1, d, h, w) bool by block, or None if nothing is masked.
        size, block: of the images and of a block, in voxels.
    """

    def __init__(self) -> None:
        self.visible: Tensor | None = None
        self.size: Size = (1, 1, 1)
        self.block: Size = (1, 1, 1)

    def set(self, mask: Tensor | None, size: Size, block: Size) -> None:
        """Set masks (N, blocks), true for masked blocks; None masks nothing."""
        self.visible = None if mask is None else ~mask.view(-1, 1, *block_grid(size, block))
        self.size, self.block = size, block

    def at(self, grid: Size) -> Tensor | None:
        """Return the visible cells of a grid, (N, 1, *grid) bool; None if all are, as in grids coarser than blocks."""
        if self.visible is None:
            return None
        cells = self.visible
        for axis, n in enumerate(grid):
            stride = self.size[axis] // n
            if stride > self.block[axis]:
                return None
            cells = cells.repeat_interleave(self.block[axis] // stride, dim=2 + axis)
        return cells[:, :, : grid[0], : grid[1], : grid[2]]


def make_sparse(encoder: nn.Module) -> SparseMask:
    """Make an encoder ignore masked blocks by hooks; parameters stay. Returns the mask that the hooks read.

    Norms use visible cells only, and the outputs of convolutions and poolings are zero in masked ones.
    """
    mask = SparseMask()

    def cover(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
        visible = mask.at(spatial_size(output))
        return output if visible is None else output * visible

    def normalise(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        visible = mask.at(spatial_size(output))
        if visible is None:
            return output
        assert isinstance(module, nn.InstanceNorm3d)
        return masked_norm(inputs[0], visible, module.weight, module.bias, module.eps)

    for module in encoder.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.register_forward_hook(normalise)
        elif isinstance(module, nn.Conv3d | nn.AvgPool3d):
            module.register_forward_hook(cover)
    return mask


def masked_norm(maps: Tensor, visible: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Instance normalisation of maps (N, C, d, h, w) over visible cells (N, 1, d, h, w); 0 elsewhere."""
    values, share = at_least_float32(maps), visible.to(torch.promote_types(maps.dtype, torch.float32))
    count = share.sum((2, 3, 4), keepdim=True).clamp(min=1)
    mean = (values * share).sum((2, 3, 4), keepdim=True) / count
    centred = (values - mean) * share
    variance = centred.square().sum((2, 3, 4), keepdim=True) / count
    out = centred * torch.rsqrt(variance + eps)
    if weight is not None and bias is not None:
        out = (out * weight.view(1, -1, 1, 1, 1) + bias.view(1, -1, 1, 1, 1)) * share
    return out.to(maps.dtype)
