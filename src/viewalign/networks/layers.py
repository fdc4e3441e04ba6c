"""Layers that compute what torch's own compute, for less memory traffic and with gradients that repeat on a GPU.

They stand in networks of dynamic-network-architectures in place of torch's layers; names and values of weights stay.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InstanceNorm3d(nn.InstanceNorm3d):
    """Instance normalisation whose result can be changed in place without a copy.

    torch's own returns a view of what it computed. Where a view is changed in place, as the activation and the
    residual addition behind a norm do, autograd copies the gradient three times. This result is no view: in a
    ResEnc-L's forward and backward pass a third fewer bytes are moved (docs/decisions.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each image of maps (N, C, D, H, W)."""
        # Not by way of the parent, which asks whether it trains: compiled, that would be a graph more for each answer.
        normed = F.instance_norm(input, None, None, self.weight, self.bias, eps=self.eps)
        return cast(Tensor, torch.ops.aten._unsafe_view(normed, normed.shape))


class BlockMean(nn.AvgPool3d):
    """Averages blocks of cells that do not overlap.

    torch refuses the gradient of its average pooling under deterministic algorithms on a GPU, whatever the stride.
    Without overlap it is a plain repetition, which repeats to the last bit.

    Args:
        kernel_size: cells of a block, along one axis or all three.
    """

    def __init__(self, kernel_size: int | tuple[int, int, int]) -> None:
        super().__init__(kernel_size, kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        """Average maps (N, C, D, H, W) whose sides are whole blocks."""
        return (
            cast(Tensor, _BlockMean.apply(input, self.kernel_size)) if input.requires_grad else super().forward(input)
        )


class _BlockMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Any) -> Tensor:
        pooled = F.avg_pool3d(maps, kernel)
        ctx.size, ctx.voxels = maps.shape[2:], maps[0, 0].numel() // pooled[0, 0].numel()
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return F.interpolate(gradients[0] / ctx.voxels, ctx.size, mode="nearest"), None


def replace_pools(network: nn.Module) -> None:
    """Let `BlockMean` do what average pooling over blocks does in a network."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) is nn.AvgPool3d:
                setattr(parent, name, BlockMean(child.kernel_size))
