import math

import pytest
import torch
from torch import nn

from viewalign.networks.teacher import MomentumSchedule, pair_parameters, update_ema


def test_constant_momentum():
    assert [MomentumSchedule(0.99, None, 10)(step) for step in (1, 5, 10)] == [0.99] * 3


def test_momentum_follows_half_a_cosine():
    """BYOL's schedule, 1 - (1 - first)·(cos(πk/K) + 1)/2, for an end of 1."""
    momentum = MomentumSchedule(0.9, 1.0, 11)
    for step in range(1, 12):
        assert momentum(step) == pytest.approx(1 - 0.1 * (math.cos(math.pi * (step - 1) / 10) + 1) / 2)
    assert (momentum(1), momentum(11), momentum(50)) == (pytest.approx(0.9), 1.0, 1.0)
    assert MomentumSchedule(0.5, 0.7, 1)(1) == pytest.approx(0.5)


def test_the_teacher_is_the_weighted_sum_of_all_students_before():
    student, teacher = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    teacher.requires_grad_(False)
    wanted = teacher.weight.clone()
    pairs = pair_parameters(student, teacher)
    for momentum in (0.9, 0.5):
        nn.init.normal_(student.weight)
        wanted = momentum * wanted + (1 - momentum) * student.weight.detach()
        update_ema(*pairs, momentum)
    assert torch.allclose(teacher.weight, wanted)
    assert not teacher.weight.requires_grad


def test_a_teacher_with_more_than_the_student_has_is_rejected():
    with pytest.raises(ValueError, match="bias"):
        pair_parameters(nn.Linear(2, 1, bias=False), nn.Linear(2, 1))
