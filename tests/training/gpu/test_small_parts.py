"""Synthetic volumes, timing, differences of losses, and synchronisations."""

import itertools
import math
import warnings
from unittest import mock

import numpy as np
import pytest
import torch

from viewalign.training import optimizers
from viewalign.training.gpu import timing
from viewalign.training.gpu.inspection import profiled, recorded_waits
from viewalign.training.gpu.small_runs import difference
from viewalign.training.gpu.synthetic import synthetic_volume

CPU = torch.device("cpu")


def test_synthetic_volumes_are_reproducible_ellipsoids():
    volume = synthetic_volume(3, (30, 40, 50))
    assert volume.dtype == np.float32
    assert np.array_equal(volume, synthetic_volume(3, (30, 40, 50)))
    assert not np.array_equal(volume, synthetic_volume(4, (30, 40, 50)))
    assert volume[0, 0, 0] == 0
    assert (volume != 0).mean() == pytest.approx(math.pi / 6, rel=0.1)


def test_difference_of_two_curves():
    assert difference([1.0, 2.2, 3.0], [1.0, 2.0, 3.0]) == pytest.approx(0.1)
    assert math.isnan(difference([1.0, float("nan")], [1.0, 2.0]))
    with pytest.raises(ValueError, match="2 and 3 losses"):
        difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_parts_are_summed_per_step(monkeypatch):
    clock = itertools.accumulate([0, 1, 0, 2, 0, 4, 0, 100])  # calls last 1 s, 2 s, 4 s and 100 s
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    parts = timing.Parts(CPU)
    run = parts.timed("part", lambda value: value + 1)
    for step in (0, 0, 1, 9):
        parts.step = step
        assert run(1) == 2
    assert parts.medians(range(2)) == {"part": 3.5}


def test_median_time_after_warm_up(monkeypatch):
    clock = itertools.accumulate([0, 50, 0, 1, 0, 3, 0, 2])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.seconds_of(lambda: None, CPU, repeats=3, warm=1) == 2


class Waiting(torch.nn.Linear):
    """A module that synchronises when its parameters are read."""

    def parameters(self, recurse=True):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("Synchronization debug mode does not detect all synchronizing operations", stacklevel=1)
        return super().parameters(recurse)


def test_synchronisations_are_counted_by_line():
    with mock.patch.object(torch.cuda, "set_sync_debug_mode") as mode, recorded_waits(torch.device("cuda")) as found:
        optimizers.clip_gradients(Waiting(1, 1), None)
        optimizers.clip_gradients(Waiting(1, 1), None)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert mode.mock_calls == [mock.call("warn"), mock.call("default")]
    ours = {line: count for line, count in found.items() if line.startswith("training/optimizers.py:")}
    assert list(ours.values()) == [2]
    assert next(line for line in found if line not in ours).startswith("test_small_parts.py:")
    assert sum(found.values()) == 3


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_synchronisations_on_a_cpu():
    with pytest.warns(UserWarning, match="synchronizing"), recorded_waits(CPU) as found:
        optimizers.clip_gradients(Waiting(1, 1), None)
    assert not found


def test_profile():
    with profiled(CPU) as found:
        torch.randn(64, 64) @ torch.randn(64, 64)
    assert "aten::mm" in [name for _, _, name in found["top"]]
    assert 0 < found["busy_s"] < 60
