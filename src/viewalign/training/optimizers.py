"""Optimizer, learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_KEPT_FROM_DECAY = ("pos_embed", "filler")


def build_optimizer(
    module: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float,
    betas: tuple[float, float],
    on_gpu: bool = False,
) -> torch.optim.Optimizer:
    """Build SGD with Nesterov momentum or AdamW over the parameters that learn.

    Norms, biases, layer scales and positions (any parameter of one axis, and the position tables) are not decayed.
    For a GPU both are fused: only then can a step be skipped without the CPU knowing of it (`update_if_finite`).
    """
    groups = _groups(module, weight_decay)
    if name != "sgd":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, foreach=not on_gpu, fused=on_gpu)


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state that was saved on any device; how steps are computed stays as it is on this one."""
    ways = ("foreach", "fused")
    groups = [
        {**saved, **{way: now[way] for way in ways}}
        for saved, now in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            small = parameter.ndim <= 1 or name.endswith(_KEPT_FROM_DECAY)
            (kept if small else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(update: int, updates: int, lr: float, warmup: int, power: float) -> float:
    """Return the rate of update `update` (from 0) of `updates`: linear warm-up, then `lr·(1 - t)^power`."""
    if update < warmup:
        return lr * (update + 1) / warmup
    progress = (update - warmup) / max(1, updates - warmup)
    return lr * float((1.0 - min(progress, 1.0)) ** power)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(module: nn.Module, limit: float | None) -> Tensor:
    """Scale gradients to a norm of at most `limit`; return the norm they had, a scalar on their device."""
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit, foreach=True)
