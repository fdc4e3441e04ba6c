"""Stochastic depth (Huang et al., arXiv:1603.09382) whose draws belong to an image, not to a process.

The usual module draws from torch's generator whenever it runs, so what an image skips depends on what ran before it
and on which process it lies. Here all draws of a forward pass are made beforehand, one generator an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from viewalign.utils.precision import send


class DropPath(nn.Module):
    """Multiply a residual branch (N, ...) by 0 for the images that skip it, and by 1/(1 - rate) for the others.

    Args:
        rate: the probability of skipping.

    Attributes:
        scale: (N,) the factor of each image, on the branch's device; None lets all pass unscaled. A compiled block
            reads no rate: with the rate in the arithmetic, every block would be compiled by itself.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """Scale a branch image by image."""
        if self.scale is None:
            return branch
        return branch * self.scale.to(branch.dtype).view(-1, *(1 for _ in branch.shape[1:]))


def add_drop_path(blocks: Iterable[nn.Module], rate: float) -> list[DropPath]:
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


def sample_drop_path(paths: Sequence[DropPath], generators: Sequence[np.random.Generator] | None, like: Tensor) -> None:
    """Draw for every image, from its own generator, which branches it takes; None takes all.

    Args:
        paths: of a network, in the order of its branches.
        generators: one an image.
        like: a weight of the network: the factors of all branches are sent to its device at once, in its precision.
    """
    if generators is None or not paths:
        for path in paths:
            path.scale = None
        return
    draws = np.stack([generator.random(len(paths)) for generator in generators], axis=1)
    rates = np.array([path.rate for path in paths])[:, None]
    scales = torch.from_numpy(draws >= rates).to(like.dtype) / torch.from_numpy(1.0 - rates).to(like.dtype)
    for path, scale in zip(paths, send(scales, like.device), strict=True):
        path.scale = scale
