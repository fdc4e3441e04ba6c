"""Block masks: which blocks of a view the student does not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.device import send

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
    rows = np.stack([draw_mask(rng, blocks, ratio) for rng in generators])
    return BlockMask(send(torch.from_numpy(rows), device), blocks - int(rows[0].sum()))


def block_grid(size: Size, block: Size) -> Size:
    """Return how many blocks cover a view per axis; the last one may stick out."""
    return (-(-size[0] // block[0]), -(-size[1] // block[1]), -(-size[2] // block[2]))


def draw_mask(rng: np.random.Generator, blocks: int, ratio: float) -> NDArray[np.bool_]:
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


def hide(images: Tensor, mask: Tensor, block: Size) -> Tensor:
    """Return images (N, C, D, H, W) with the masked blocks zeroed."""
    d, h, w = images.shape[2:]
    return images.masked_fill(to_voxels(mask, (d, h, w), block), 0.0)


def kept_tokens(mask: BlockMask) -> Tensor:
    """Return the indices (N, kept), ascending, of the tokens that are not hidden."""
    return torch.argsort(mask.hidden.to(torch.uint8), dim=1, stable=True)[:, : mask.kept]
