"""Heads that tell how one image is moved onto another, from the features of both; they begin by moving nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viewalign.device import send
from viewalign.networks.running import run_stage
from viewalign.precision import raised

_MOST = 0.5


class AffineHead(nn.Module):
    """From pooled features of a pair to an affine.

    Args:
        inputs: channels of both vectors together.
        width: of the hidden layer.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, 12))
        _begin_at_zero(self.layers[2])

    def forward(self, pairs: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Return affines (N, 3, 4) between voxel indices of views of `size`, about their middle.

        No entry of the linear part differs from the identity's by more than a half, no shift exceeds half a side.
        """
        told = _MOST * torch.tanh(raised(self.layers(pairs)))
        sides = send(torch.tensor(size, dtype=told.dtype), told.device)
        middle = (sides - 1) / 2
        linear = torch.eye(3, dtype=told.dtype, device=told.device) + told[:, :9].unflatten(1, (3, 3))
        shift = middle + told[:, 9:] * sides - (linear * middle).sum(-1)
        return torch.cat([linear, shift[..., None]], dim=-1)


class FieldHead(nn.Module):
    """From maps of a pair, laid over each other, to displacements.

    Args:
        inputs: channels of both maps together.
        width: of the hidden layers.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(inputs, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, 3, 3, padding=1),
        )
        _begin_at_zero(self.layers[4])

    def forward(self, pairs: Tensor) -> Tensor:
        """Return displacements (N, 3, d, h, w) in voxels of the view."""
        return raised(run_stage(self.layers, pairs))


def _begin_at_zero(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear | nn.Conv3d)
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
