"""What a device can do at most: matrix products and copies, measured."""

from __future__ import annotations

import torch

from viewalign.training.gpu.timing import seconds_of

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def product_rate(device: torch.device, precision: str) -> float:
    """Return the operations a second of a large matrix product of random numbers.

    Args:
        device: on a CPU the product is small.
        precision: bf16, fp16, or anything else for float32.
    """
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=_TYPES.get(precision, torch.float32)) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device, repeats=10)


def copy_rate(device: torch.device) -> float:
    """Return the bytes a second that a copy within the device's memory reads and writes."""
    source = torch.randn(1 << (28 if device.type == "cuda" else 20), device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / seconds_of(lambda: target.copy_(source), device)


def upload_rate(device: torch.device) -> float:
    """Return the bytes a second from page-locked memory of the host to a GPU."""
    source = torch.empty(1 << 26).pin_memory()
    return source.numel() * source.element_size() / seconds_of(lambda: source.to(device, non_blocking=True), device)
