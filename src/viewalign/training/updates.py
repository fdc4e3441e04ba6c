"""Optimizer steps that are made only where loss and gradients are finite.

On a CPU the norm of the gradients is read before the step. On a GPU reading it would leave the GPU idle until the
program has queued new work; there the optimizer's own kernels decide, and the norm is read one step later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from viewalign.device import read_later, send
from viewalign.methods.base import Method
from viewalign.processes import gather_over_processes
from viewalign.views.batch import ViewBatch


@dataclass(frozen=True)
class Update:
    """An optimizer step of which it may not be known yet whether it was made.

    Attributes:
        norm: returns the norm of the gradients; on a GPU this waits until the step is computed.
        rate: the learning rate.
        logs: the step's scalars, on the device.
        batch: what the step saw.
    """

    norm: Callable[[], float]
    rate: float
    logs: dict[str, Tensor]
    batch: ViewBatch


def update_if_finite(
    method: Method, optimizer: torch.optim.Optimizer, norm: Tensor, number: int
) -> Callable[[], float]:
    """Make optimizer step `number` (from 1) and what follows it, where `norm` is finite; else change nothing.

    Args:
        method: what is trained.
        optimizer: of `build_optimizer`: on a GPU a fused one, whose kernels take `found_inf` as for a gradient scaler.
        norm: of the gradients, the same on all processes.
        number: of the step, if it is made.

    Returns:
        A function that returns the norm.
    """
    # A first step that a GPU skips would leave momentum that is made then, and never filled.
    if norm.device.type == "cpu" or not optimizer.state:
        optimizer.grad_scale, optimizer.found_inf = None, None  # type: ignore[attr-defined]
        value = float(norm)
        if math.isfinite(value):
            optimizer.step()
            method.after_update(number)
        return lambda: value
    made = torch.isfinite(norm).float()
    optimizer.grad_scale, optimizer.found_inf = None, 1 - made  # type: ignore[attr-defined]
    optimizer.step()
    method.after_update(number, made)
    return read_later(norm)


def volumes_of(batch: ViewBatch) -> tuple[list[int], list[int]]:
    """Return a step's volumes, those of all processes, and which of them hold a voxel that is not finite."""
    finite = torch.isfinite(batch.views).flatten(2).all(2).all(0)
    rows = torch.stack([send(batch.volume_id, finite.device), finite.long()])
    volumes, whole = gather_over_processes(rows, dim=1).tolist()
    return volumes, [volume for volume, good in zip(volumes, whole, strict=True) if not good]
