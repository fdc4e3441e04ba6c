"""Two views fused block by block, and labels that tell by how much: Volume Fusion (Wang et al., arXiv:2306.16925)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int, int]


def draw_labels(
    rng: np.random.Generator, size: Size, levels: int = 4, blocks: tuple[int, int] = (10, 40), largest: float = 0.625
) -> Tensor:
    """Draw the label of each voxel, (D, H, W) int64 in [0, levels]: 0 outside all boxes, later ones on top.

    Args:
        rng: the image's own generator.
        size: of the view.
        levels: how many shares of the foreground there are besides 0.
        blocks: how many boxes, [low, high).
        largest: the longest side of a box as a share of the view's; the shortest is 8 voxels, or that if it is less.
    """
    labels = np.zeros(size, dtype=np.int64)
    for _ in range(int(rng.integers(*blocks))):
        place = []
        for n in size:
            top = max(1, int(n * largest))
            side = int(rng.integers(min(8, top), top + 1))
            start = int(rng.integers(0, n - side + 1))
            place.append(slice(start, start + side))
        labels[tuple(place)] = rng.integers(1, levels + 1)
    return torch.from_numpy(labels)


def fuse(front: Tensor, back: Tensor, labels: Tensor, levels: int = 4) -> Tensor:
    """Return a·front + (1 - a)·back with a = label / levels; images (N, C, D, H, W), labels (N, D, H, W)."""
    share = (labels[:, None] / levels).to(front.dtype)
    return share * front + (1 - share) * back
