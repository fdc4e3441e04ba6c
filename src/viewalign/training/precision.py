"""Which arithmetic pays on this machine: measured where it is not known."""

from __future__ import annotations

import time
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def choose(device: torch.device) -> Precision:
    """Choose bf16 autocast where it is faster: by capability on a GPU, by a half-second measurement on a CPU."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
    if device.type != "cpu":
        return "fp32"
    return "bf16" if convolution_seconds(True) < 0.8 * convolution_seconds(False) else "fp32"


def convolution_seconds(bf16: bool) -> float:
    """Time forward and backward of a 3D convolution; the best of three."""
    layer = torch.nn.Conv3d(32, 32, 3, padding=1)
    image = torch.zeros(2, 32, 24, 24, 24)
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = layer(image)
        out.float().sum().backward()
        best = min(best, time.perf_counter() - begin)
    return best
