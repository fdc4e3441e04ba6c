"""Differences with one interval over seeds and cases, and the sentences about them."""

import math

import numpy as np
import pytest
from scipy import stats

from viewalign.studies import gain_results as results
from viewalign.studies.gain_results import Comparison, Interval, crossed_interval, summary, task_interval
from viewalign.tasks.spec import TaskSpec


def comparison(low, mean, high, labelled="with 10 labelled cases", measure="dice", seeds=3, cases=20, **more):
    names = {"evaluation": "tuned-10", "frozen": False, "arm": "pretrained", "reference": "scratch", **more}
    return Comparison(labelled=labelled, measure=measure, difference=Interval(mean, low, high, seeds, cases), **names)


def test_the_headline_states_gain_no_difference_and_cost():
    found = summary(
        [comparison(0.014, 0.021, 0.028), comparison(-0.011, -0.002, 0.007, "with all 160")], 3.1 * 3600, True
    )
    assert found["headline"] == (
        "Pretraining helped with 10 labelled cases: +0.021 Dice (95 % interval +0.014 to +0.028). No gain could be "
        "shown with all 160, and none can be excluded: −0.002 Dice (95 % interval −0.011 to +0.007). It took 3.1 hours."
    )
    assert found["level"] == "good"
    assert [one["title"] for one in found["comparisons"]] == ["Pretrained against trained from scratch"] * 2


@pytest.mark.parametrize(
    ("one", "better", "words"),
    [
        (comparison(-0.03, -0.02, -0.01), False, "made it worse with 10 labelled cases: −0.020 Dice ("),
        (
            comparison(-2.0, -1.2, -0.4, measure="mae"),
            True,
            "Pretraining helped with 10 labelled cases: −1.200 Mean abs",
        ),
        (comparison(0.4, 1.2, 2.0, measure="rmse"), False, "Pretraining made it worse with 10 labelled cases: +1.200"),
        (
            comparison(0.0, 0.1, 0.2),
            None,
            "No gain could be shown with 10 labelled cases, and none can be excluded: +0.100",
        ),
        (
            comparison(None, 0.3, None, seeds=1),
            None,
            "No conclusion with 10 labelled cases (only one seed): +0.300",
        ),
        (comparison(None, 0.3, None, cases=4), None, "(only 4 test cases)"),
    ],
)
def test_better_and_worse_only_if_the_interval_excludes_zero(one, better, words):
    assert one.better is better
    assert words in one.text()


def test_frozen_features_and_unfinished_parts_are_named():
    frozen = comparison(0.1, 0.2, 0.3, evaluation="frozen-10", frozen=True)
    found = summary([frozen], 90, False)
    assert found["headline"] == "No fine-tuning is complete yet; 2 minutes so far."
    assert (found["level"], found["comparisons"][0]["verdict"]) == ("none", "better")
    assert "Not all parts" in summary([comparison(0.1, 0.2, 0.3)], 90, False)["headline"]


@pytest.mark.parametrize(
    ("ends", "level"),
    [
        ([(0.1, 0.3)], "good"),
        ([(0.1, 0.3), (-0.1, 0.1)], "good"),
        ([(-0.1, 0.1)], "watch"),
        ([(0.1, 0.3), (-0.3, -0.1)], "watch"),
        ([(-0.3, -0.1), (-0.1, 0.1)], "bad"),
        ([(None, None)], "watch"),
    ],
)
def test_the_level_is_that_of_all_fine_tunings(ends, level):
    assert summary([comparison(low, 0.0, high) for low, high in ends], 90, True)["level"] == level


def test_networks_that_have_learnt_nothing_are_reported():
    words = "Dice of both is at most 0.05 with 4 labelled cases: too little was learnt to compare them"
    one = comparison(-0.02, 0.0, 0.02, "with 4 labelled cases", values=(0.05, 0.04))
    assert words in summary([one], 90, True)["headline"]
    assert "too little" not in summary([comparison(-0.02, 0.0, 0.02, values=(0.05, 0.4))], 90, True)["headline"]
    assert "too little" not in summary([comparison(-0.02, 0.0, 0.02)], 90, True)["headline"]


def test_without_variance_between_seeds_the_interval_is_students_over_cases():
    cases = np.random.default_rng(0).normal(0.02, 0.05, 12)
    one = crossed_interval(np.tile(cases, (4, 1)))
    low, high = stats.t.interval(0.95, 11, cases.mean(), stats.sem(cases))
    assert (one.low, one.high) == pytest.approx((low, high))


def test_without_variance_between_cases_the_interval_is_students_over_seeds():
    seeds = np.random.default_rng(0).normal(0.02, 0.05, 4)
    one = crossed_interval(np.tile(seeds[:, None], (1, 30)))
    low, high = stats.t.interval(0.95, 3, seeds.mean(), stats.sem(seeds))
    assert (one.low, one.high) == pytest.approx((low, high))


@pytest.mark.slow
@pytest.mark.parametrize("scales", [(0.02, 0.0, 0.05), (0.0, 0.05, 0.05), (0.02, 0.05, 0.05), (0.0, 0.0, 0.05)])
def test_the_interval_covers_zero_in_at_least_95_percent_of_simulations(scales):
    rng, covered, shapes = np.random.default_rng(1), [], [(3, 1), (1, 15), (3, 15)]
    for _ in range(1500):
        seed, case, rest = (rng.normal(0, 1, shape) * s for shape, s in zip(shapes, scales, strict=True))
        one = crossed_interval(seed + case + rest)
        covered.append(one.low <= 0 <= one.high)
    assert np.mean(covered) > 0.945


def test_a_measure_that_is_not_defined_is_named_as_the_reason():
    one = Comparison("tuned-10", False, "with 10", "auroc", "a", "b", Interval(math.nan, None, None, 3, 20))
    assert "not defined" in one.verdict
    assert "20" not in one.text()


def test_one_seed_or_few_cases_have_no_interval():
    assert crossed_interval(np.zeros((1, 20))).low is None
    assert crossed_interval(np.zeros((3, 4))).low is None
    equal = crossed_interval(np.zeros((3, 20)))
    assert (equal.low, equal.high) == (0.0, 0.0)


def test_the_interval_of_two_different_seeds_ends_at_the_largest_possible_difference():
    one = crossed_interval(np.tile([[0.4], [-0.2]], (1, 20)))
    assert (one.low, one.high) == (-1, 1)
    spec = TaskSpec.model_validate({"name": "age", "kind": "regression", "channels": [{"name": "t1"}]})
    truth = np.arange(20.0)
    one = task_interval(spec, truth, [str(k) for k in truth], [(truth, truth + 1), (truth, truth + 9)])
    assert one.low < -1
    assert one.high > 9


@pytest.mark.slow
def test_the_interval_of_a_task_contains_a_difference_that_is_there(monkeypatch):
    monkeypatch.setattr(results, "_DRAWS", 60)
    rng = np.random.default_rng(0)
    spec = TaskSpec.model_validate({"name": "age", "kind": "regression", "channels": [{"name": "t1"}]})
    truth = rng.uniform(20, 80, 40)
    pairs = [(truth + rng.normal(0, 10, 40), truth + rng.normal(0, 2, 40)) for _ in range(3)]
    one = task_interval(spec, truth, [f"s{k}" for k in range(40)], pairs)
    assert -12 < one.low < one.mean < one.high < -3
    same = task_interval(spec, truth, [f"s{k}" for k in range(40)], [(a, a) for a, _ in pairs])
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert Comparison("e", False, "with all", "mae", "a", "b", one).better is True
