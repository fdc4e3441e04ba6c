"""Synthetic volumes, timing, and differences of losses."""

import itertools
import math

import numpy as np
import pytest
import torch

from viewalign.training.gpu import timing
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
