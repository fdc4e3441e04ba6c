"""Replacements of torch layers with less memory traffic and deterministic gradients on GPUs.

They compute the same values and keep the names of parameters, so that they can replace layers of
dynamic-network-architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32

Run = Callable[..., Tensor]
"""Calls a block with its inputs; a backbone's may recompute activations in the backward pass."""


def run_block(block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call a block: the default `Run`."""
    return block(*inputs)


class InstanceNorm3d(nn.InstanceNorm3d):
    """Instance normalisation whose output may be changed in place without a copy.

    torch's returns a view, and autograd copies the gradient three times where a view is changed in place, as the
    activation and the residual addition after a norm do. Without these copies a ResEnc-L moves a third fewer bytes per
    step (docs/decisions.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise maps (N, C, D, H, W)."""
        # Not through the parent, which reads `self.training`: when compiled, each value would need its own graph.
        out = F.instance_norm(input, None, None, self.weight, self.bias, eps=self.eps)
        return cast(Tensor, torch.ops.aten._unsafe_view(out, out.shape))


class BlockMean(nn.AvgPool3d):
    """Average pooling without overlap, with a deterministic gradient on GPUs, which torch's does not have.

    Args:
        kernel_size: cells of a block, along each axis or (D, H, W).
    """

    def __init__(self, kernel_size: int | tuple[int, int, int]) -> None:
        super().__init__(kernel_size, kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        """Average maps (N, C, D, H, W) whose sides are multiples of the block's."""
        if not input.requires_grad:
            return super().forward(input)
        return cast(Tensor, _BlockMean.apply(input, self.kernel_size))


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
    """Replace every average pooling of a network by `BlockMean`."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) is nn.AvgPool3d:
                setattr(parent, name, BlockMean(child.kernel_size))


def run_stage(stage: nn.Module, maps: Tensor) -> Tensor:
    """Run a stage or a convolution; on a CPU maps at most four cells deep are computed in float32.

    torch 2.14.1's bfloat16 Conv3d on CPUs returns uninitialised memory as the weight gradient of maps two cells deep
    (found on AVX512-BF16, see docs/decisions.md).
    """
    if maps.device.type == "cpu" and maps.shape[2] <= 4:
        with torch.autocast("cpu", enabled=False):
            return cast(Tensor, stage(at_least_float32(maps)))
    return cast(Tensor, stage(maps))


class PlainDecoder(nn.Module):
    """Doubles the resolution of a map step by step, like the "nsUNet" of PCRLv2 (Zhou et al., arXiv:2301.00772).

    Args:
        channels: of the input, then of each map, coarsest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels[:0:-1])
        self.ups = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, 2) for a, b in pairwise(channels))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv3d(n, n, 3, padding=1), InstanceNorm3d(n, affine=True), nn.LeakyReLU(inplace=True))
            for n in channels[1:]
        )

    def forward(self, coarsest: Tensor, run: Run = run_block) -> list[Tensor]:
        """Return maps (N, `channels[k]`, d, h, w), finest first; the finest has the resolution of the image."""
        maps = [coarsest]
        for up, stage in zip(self.ups, self.stages, strict=True):
            maps.append(run(partial(_step, up, stage), maps[-1]))
        return maps[:0:-1]


def _step(up: nn.Module, stage: nn.Module, maps: Tensor) -> Tensor:
    return run_stage(stage, up(maps))
