"""Learning rates and stages against the published numbers."""

import pytest

from viewalign.finetuning.segmentation.schedule import Schedule, published


def test_resenc_of_a_thousand_epochs():
    schedule = published("resenc")
    assert (schedule.optimizer, schedule.lr, schedule.weight_decay, schedule.clip) == ("sgd", 1e-3, 3e-5, 12.0)
    assert (schedule.warmup_epochs, schedule.epochs, schedule.frozen) == (50, 1000, 0)
    assert schedule.rate(0) == pytest.approx(1e-3 / 50)
    assert schedule.rate(49) == pytest.approx(1e-3)
    assert schedule.rate(50) == pytest.approx(1e-3)
    assert schedule.rate(525) == pytest.approx(1e-3 * 0.5**0.9)
    assert schedule.rate(999) == pytest.approx(1e-3 * (1 / 950) ** 0.9)


def test_primus_and_other_lengths():
    schedule = published("primus", 150)
    assert (schedule.optimizer, schedule.lr, schedule.weight_decay, schedule.clip) == ("adamw", 1e-4, 5e-2, 1.0)
    assert [published("primus", n).warmup_epochs for n in (30, 100, 150, 300, 1000, 4000)] == [3, 10, 15, 30, 50, 50]
    assert published("resenc", 150, from_scratch=True).lr == 1e-2
    assert published("primus", 150, from_scratch=True).lr == 3e-4


def test_a_sawtooth_rises_and_falls_twice():
    schedule = published("resenc", sawtooth=True)
    assert schedule.frozen == 50
    assert [schedule.stage(epoch) for epoch in (0, 49, 50, 999)] == ["frozen", "frozen", "whole", "whole"]
    assert schedule.rate(24) == pytest.approx(1e-3)  # the decoder's warm-up of 25 epochs has ended
    assert schedule.rate(49) < 1e-4
    assert schedule.rate(50) == pytest.approx(1e-3 / 50)  # the whole network begins to warm up
    assert schedule.rate(99) == pytest.approx(1e-3)
    rates = [schedule.rate(epoch) for epoch in range(100, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert published("primus", sawtooth=True).rate(24) == pytest.approx(1e-5)


def test_a_single_epoch_and_one_past_the_end():
    assert published("resenc", 1).rate(0) == 1e-3
    assert published("resenc", 10).rate(10) == 0.0


def test_a_schedule_goes_through_a_plan():
    schedule = published("primus", 30, sawtooth=True)
    assert Schedule.from_plan(schedule.as_json() | {"of a later version": 1}) == schedule
    assert Schedule.from_plan({}) == Schedule()
    with pytest.raises(ValueError, match=r"warm-up.*\b10\b"):
        Schedule(epochs=10, warmup_epochs=5, frozen=5)
