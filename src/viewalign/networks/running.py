"""Running convolutions where a CPU's bfloat16 cannot be trusted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viewalign.precision import raised


def run_stage(stage: nn.Module, maps: Tensor) -> Tensor:
    """Run a stage of blocks or a convolution, in float32 where a CPU's bfloat16 cannot be trusted.

    torch 2.14.1's bfloat16 Conv3d on CPUs returns uninitialised memory as the weight gradient of maps that are two
    cells deep (found on AVX512-BF16, see docs/decisions.md). Maps so small cost next to nothing in float32.
    """
    if maps.device.type == "cpu" and maps.shape[2] <= 4:
        with torch.autocast("cpu", enabled=False):
            small: Tensor = stage(raised(maps))
            return small
    out: Tensor = stage(maps)
    return out
