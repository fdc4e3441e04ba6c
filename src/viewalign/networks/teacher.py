"""The teacher: an exponential moving average of the student's encoder and projector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Momentum:
    """How slowly the teacher follows, by optimizer step.

    Attributes:
        first: at the first step, and for good where there is no `last`.
        last: at the last step; between them it goes along half a cosine, as in BYOL (Grill et al., arXiv:2006.07733).
        steps: of the whole run.
    """

    first: float = 0.995
    last: float | None = None
    steps: int = 1

    def __call__(self, step: int) -> float:
        """Return the momentum of step 1 … `steps`."""
        if self.last is None:
            return self.first
        done = min(max(step - 1, 0) / max(self.steps - 1, 1), 1.0)
        return self.last - (self.last - self.first) * (math.cos(math.pi * done) + 1) / 2


def pair_parameters(student: nn.Module, teacher: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the student's and the teacher's parameters of equal names, the teacher's whole list.

    Raises:
        ValueError: the teacher has a parameter that the student lacks.
    """
    mine = dict(student.named_parameters())
    names = [name for name, _ in teacher.named_parameters()]
    strangers = [name for name in names if name not in mine]
    if strangers:
        raise ValueError(f"the teacher has parameters that the student lacks: {strangers[:3]}")
    return [mine[name] for name in names], list(teacher.parameters())


@torch.no_grad()
def move_towards(student: list[Tensor], teacher: list[Tensor], momentum: float, made: Tensor | None = None) -> None:
    """Set teacher = momentum x teacher + (1 - momentum) x student, in a few calls for all tensors.

    Args:
        student, teacher: pairs of parameters.
        momentum: in [0, 1].
        made: a scalar on their device, 1 for the update and 0 for none; None makes it.
    """
    if made is None:
        torch._foreach_lerp_(teacher, student, 1.0 - momentum)
        return
    moves = torch._foreach_sub(student, teacher)
    torch._foreach_mul_(moves, made * (1.0 - momentum))
    torch._foreach_add_(teacher, moves)


def freeze(module: nn.Module) -> None:
    """Take a module's parameters out of any gradient."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
