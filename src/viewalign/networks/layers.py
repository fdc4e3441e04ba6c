"""Layers that compute what torch's own compute, for less memory traffic and with gradients that repeat on a GPU.

They stand in networks of dynamic-network-architectures in place of torch's layers; names and values of weights stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32, full_precision


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


@full_precision
def mean_vectors(maps: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    """Average each map over its cells, and concatenate.

    Products with the shares stay in a map's own precision and are added up in float32: at the resolution of the image,
    maps in float32 would take as much memory as the network's own.

    Args:
        maps: (N, C, d, h, w) each.
        shares: (N, 1, d, h, w) each, how much a cell counts; an image of which none does gives zeros.

    Returns:
        (N, ΣC), float32 or better.
    """
    columns = []
    for one, share in zip(maps, shares, strict=True):
        precise = torch.promote_types(one.dtype, torch.float32)
        # Shares are rounded before they are added up, so that weights stay in proportion to each other.
        weight = share.to(one.dtype)
        total = weight.sum((2, 3, 4), dtype=precise).clamp(min=1e-6)
        columns.append((one * weight).sum((2, 3, 4), dtype=precise) / total)
    return torch.cat(columns, dim=1)


def run_stage(stage: nn.Module, maps: Tensor) -> Tensor:
    """Run a stage of blocks or a convolution, in float32 where a CPU's bfloat16 cannot be trusted.

    torch 2.14.1's bfloat16 Conv3d on CPUs returns uninitialised memory as the weight gradient of maps that are two
    cells deep (found on AVX512-BF16, see docs/decisions.md). Maps so small cost next to nothing in float32.
    """
    if maps.device.type == "cpu" and maps.shape[2] <= 4:
        with torch.autocast("cpu", enabled=False):
            small: Tensor = stage(at_least_float32(maps))
            return small
    out: Tensor = stage(maps)
    return out


Run = Callable[..., Tensor]


class PlainDecoder(nn.Module):
    """Doubles the resolution of a map step by step, as the "nsUNet" of PCRLv2 (Zhou et al., arXiv:2301.00772).

    Args:
        channels: of the map that is given, then of each map that is made, coarsest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels[:0:-1])
        self.ups = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, 2) for a, b in pairwise(channels))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv3d(n, n, 3, padding=1), InstanceNorm3d(n, affine=True), nn.LeakyReLU(inplace=True))
            for n in channels[1:]
        )

    def forward(self, coarsest: Tensor, run: Run = lambda block, *given: block(*given)) -> list[Tensor]:
        """Return the maps (N, `channels[k]`, d, h, w), finest first; `run` calls each step.

        The finest has the resolution of the image.
        """
        maps = [coarsest]
        for up, stage in zip(self.ups, self.stages, strict=True):
            maps.append(run(partial(_step, up, stage), maps[-1]))
        return maps[:0:-1]


def _step(up: nn.Module, stage: nn.Module, maps: Tensor) -> Tensor:
    return run_stage(stage, up(maps))
