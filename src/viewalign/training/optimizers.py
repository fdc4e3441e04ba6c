"""Optimizer, learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from viewalign.methods.base import Method
from viewalign.utils.distributed import gather_over_processes
from viewalign.utils.precision import read_later, send
from viewalign.views.batch import ViewBatch

_NOT_DECAYED = {"pos_embed", "filler", "fillers"}
"""Parts of the names of position tables and of what stands for masked tokens or cells."""


def build_optimizer(
    module: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float,
    betas: tuple[float, float],
    on_gpu: bool = False,
) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum or AdamW over the trainable parameters.

    Weight decay is not applied to norms, biases, layer scales (all parameters of one axis), position tables and learned
    fillers of masked parts. On a GPU both are fused, so that a step can be skipped without synchronising
    (`update_if_finite`).
    """
    groups = _groups(module, weight_decay)
    if name != "sgd":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, foreach=not on_gpu, fused=on_gpu)


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state from any device, but keep this device's implementation of the step."""
    implementation = ("foreach", "fused")
    groups = [
        {**saved, **{key: own[key] for key in implementation}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            excluded = parameter.ndim <= 1 or not _NOT_DECAYED.isdisjoint(name.split("."))
            (others if excluded else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(update: int, updates: int, lr: float, warmup: int, power: float) -> float:
    """Return the learning rate of update number `update` (from 0): linear warm-up, then `lr·(1 - t)^power`."""
    if update < warmup:
        return lr * (update + 1) / warmup
    progress = (update - warmup) / max(1, updates - warmup)
    return lr * float((1.0 - min(progress, 1.0)) ** power)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(module: nn.Module, limit: float | None) -> Tensor:
    """Clip gradients to a norm of `limit`; return their norm before, a scalar on their device."""
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit, foreach=True)


@dataclass(frozen=True)
class Update:
    """An optimizer step; on a GPU it may not be known yet whether it was applied.

    Attributes:
        norm: returns the norm of the gradients; on a GPU it waits until the step is computed.
        rate: learning rate.
        logs: scalars of the step, on the device.
        batch: of the step.
    """

    norm: Callable[[], float]
    rate: float
    logs: dict[str, Tensor]
    batch: ViewBatch


def update_if_finite(
    method: Method, optimizer: torch.optim.Optimizer, norm: Tensor, number: int
) -> Callable[[], float]:
    """Run optimizer step `number` (from 1) and the method's `after_update` if `norm` is finite, else change nothing.

    Args:
        method: to be trained.
        optimizer: from `build_optimizer`; on a GPU fused, whose kernels read `found_inf` as set by gradient scalers.
        norm: of the gradients, the same on all processes.
        number: of the step if it is made.

    Returns:
        A function that returns the norm.
    """
    # A skipped first step on a GPU would leave momentum buffers that are allocated but never filled.
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
    """Return the volumes of a step on all processes, and those of them with a non-finite voxel."""
    finite = torch.isfinite(batch.views).flatten(2).all(2).all(0)
    rows = torch.stack([send(batch.volume_id, finite.device), finite.long()])
    volumes, whole = gather_over_processes(rows, dim=1).tolist()
    return volumes, [volume for volume, good in zip(volumes, whole, strict=True) if not good]
