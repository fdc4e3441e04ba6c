"""What a network computes on, and how tensors come there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from viewalign.arithmetic import allow_tf32
from viewalign.errors import UserError

DEVICES = ("auto", "cuda", "cpu")
"""Not Apple's "mps": it has no float64, in which geometry and figures are worked out."""


def choose_device(name: str = "auto") -> str:
    """Settle a device: `auto` takes a GPU where there is one, on which float32 then is float32, not TF32.

    Args:
        name: auto, cuda or cpu.

    Raises:
        UserError: a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, found in there.items() if found)
    if name == "mps":
        raise UserError("Apple's GPUs (mps) have no float64, which is needed here; take cpu.")
    if name not in there:
        raise UserError(f"There is no device {name}; there are {', '.join(DEVICES)}.")
    if not there[name]:
        raise UserError(f"There is no {name} device here; take cpu, or leave the device out.")
    allow_tf32(False)
    return name


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor of the CPU to a device without waiting for the work that is queued there.

    Memory that is not pinned would make the copy wait on a GPU, whatever `non_blocking` says. A tensor that lies on the
    device already is returned as it is.
    """
    if values.device.type == "cpu" and device.type != "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def read_later(value: Tensor) -> Callable[[], float]:
    """Start to copy a number to the CPU; the function that is returned waits for this copy alone, and returns it."""
    if value.device.type == "cpu":
        return value.item
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    copied = torch.cuda.Event() if value.device.type == "cuda" else None
    if copied is not None:
        copied.record(torch.cuda.current_stream(value.device))

    def read() -> float:
        if copied is not None:
            copied.synchronize()
        return copy.item()

    return read
