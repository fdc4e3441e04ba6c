"""Stochastic depth (Huang et al., arXiv:1603.09382) whose draws belong to an image, not to a process.

The usual module draws from torch's generator whenever it runs, so what an image skips depends on what ran before it
and on which process it lies. Here all draws of a forward pass are made beforehand, one generator an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Multiply a residual branch (N, ...) by 0 for the images that skip it, and by 1/(1 - rate) for the others.

    Args:
        rate: the probability of skipping.

    Attributes:
        keep: (N,) whether each image takes the branch; None lets all pass unscaled.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """Scale a branch image by image."""
        if self.keep is None:
            return branch
        scale = self.keep.to(branch.device, branch.dtype) / (1.0 - self.rate)
        return branch * scale.view(-1, *(1 for _ in branch.shape[1:]))


def drop_path_of_rows(blocks: Iterable[nn.Module], rate: float) -> list[DropPath]:
    """Give Eva blocks stochastic depth, of a rate that rises linearly from 0 to `rate`; returns the modules.

    A block has two branches, attention and MLP, which are skipped independently. Blocks of rate 0 are left alone.
    """
    made, every = [], list(blocks)
    for block, own in zip(every, np.linspace(0.0, rate, len(every)), strict=True):
        for branch in ("drop_path1", "drop_path2") if own > 0 else ():
            module = DropPath(float(own))
            setattr(block, branch, module)
            made.append(module)
    return made


def draw_rows(paths: Sequence[DropPath], generators: Sequence[np.random.Generator] | None) -> None:
    """Draw for every image, from its own generator, which branches it takes; None takes all."""
    if generators is None or not paths:
        for path in paths:
            path.keep = None
        return
    draws = np.stack([generator.random(len(paths)) for generator in generators])
    for k, path in enumerate(paths):
        path.keep = torch.from_numpy(draws[:, k] >= path.rate)
