"""The teacher: an exponential moving average (EMA) of the student."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MomentumSchedule:
    """MomentumSchedule of the EMA by optimizer step.

    Attributes:
        first: at the first step, and at all steps if `last` is None.
        last: at the last step, reached along half a cosine as in BYOL (Grill et al., arXiv:2006.07733).
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
    """Return the parameters of student and teacher with equal names: all of the teacher's.

    Raises:
        ValueError: the teacher has a parameter that the student lacks.
    """
    students = dict(student.named_parameters())
    names = [name for name, _ in teacher.named_parameters()]
    missing = [name for name in names if name not in students]
    if missing:
        raise ValueError(f"the teacher has parameters that the student lacks: {missing[:3]}")
    return [students[name] for name in names], list(teacher.parameters())


@torch.no_grad()
def update_ema(student: list[Tensor], teacher: list[Tensor], momentum: float, made: Tensor | None = None) -> None:
    """Set teacher = momentum x teacher + (1 - momentum) x student, with a few kernels for all tensors.

    Args:
        student, teacher: pairs of parameters.
        momentum: in [0, 1].
        made: scalar on their device, 0 to skip the update and 1 to make it; None makes it.
    """
    if made is None:
        torch._foreach_lerp_(teacher, student, 1.0 - momentum)
        return
    moves = torch._foreach_sub(student, teacher)
    torch._foreach_mul_(moves, made * (1.0 - momentum))
    torch._foreach_add_(teacher, moves)
