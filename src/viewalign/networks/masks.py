"""Block masks: which blocks of a view the student does not see."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int, int]


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


def kept_tokens(mask: Tensor) -> Tensor:
    """Return the indices (N, kept), ascending, of the tokens that masks (N, tokens) leave; each row keeps as many."""
    kept = int(mask.shape[1] - int(mask[0].sum()))
    return torch.argsort(mask.to(torch.uint8), dim=1, stable=True)[:, :kept]
