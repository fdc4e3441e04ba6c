"""Figures of a study against scipy's own tests and sums by hand."""

import numpy as np
import pytest
from scipy import stats

from viewalign.studies.resolution import resolution, smallest_difference
from viewalign.studies.table import against, estimate, holm, over_cases, ranks, resolutions

RNG = np.random.default_rng(0)
MADE = {name: dict(enumerate(RNG.normal(0.7 + 0.02 * k, 0.02, 6).tolist())) for k, name in enumerate("abc")}


def test_an_interval_is_that_of_scipy():
    values = list(MADE["a"].values())
    ends = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = estimate(values)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.mean == pytest.approx(np.mean(values))


def test_few_or_broken_values_give_no_interval():
    assert estimate([0.5]) == estimate([0.5, float("nan")])
    assert estimate([0.5]).low is None
    assert np.isnan(estimate([]).mean)


def test_differences_are_paired_by_seed():
    found = against(MADE, "a")
    assert set(found) == {"b", "c"}
    for arm in "bc":
        told = stats.ttest_rel(list(MADE[arm].values()), list(MADE["a"].values()))
        assert found[arm].p_value == pytest.approx(told.pvalue)
        ends = told.confidence_interval(0.95)
        assert (found[arm].difference.low, found[arm].difference.high) == pytest.approx((ends.low, ends.high))


def test_only_seeds_of_both_count():
    found = against({"a": {0: 1.0, 1: 2.0, 5: 9.0}, "b": {1: 2.5, 0: 2.0, 7: 0.0}}, "a")["b"]
    assert found.difference.mean == pytest.approx(0.75)
    assert found.difference.seeds == 2


@pytest.mark.parametrize("values", [{7: 0.0}, {0: np.nan, 7: 0.0}])
def test_an_arm_without_a_common_seed_has_no_difference(values):
    assert against({"a": {0: 1.0, 1: 2.0}, "b": values}, "a") == {}


def test_equal_differences_have_no_p_value():
    assert against({"a": {0: 1.0, 1: 2.0}, "b": {0: 2.0, 1: 3.0}}, "a")["b"].p_value is None
    rounded = {"a": {0: 0.1, 1: 0.2, 2: 0.3}, "b": {0: 0.2, 1: 0.3, 2: 0.4}}
    assert against(rounded, "a")["b"].p_value is None
    assert resolution(rounded, "a") is None


def test_values_of_one_pretraining_have_no_interval_and_no_p_value():
    assert estimate([0.5, 0.6], single=True).low is None
    for single, tested in (("a", ()), ("b", ("c",)), ((), ("b", "c"))):
        found = against(MADE, "a", single)
        assert found["b"].difference.mean == against(MADE, "a")["b"].difference.mean
        assert [arm for arm in "bc" if found[arm].p_value is not None and found[arm].difference.low is not None] == [
            *tested
        ]
    assert against(MADE, "a", "b")["c"].holm == against(MADE, "a")["c"].p_value, "one test alone is not corrected"


def test_cases_are_paired_over_the_mean_of_the_seeds_of_both():
    base = {seed: {f"c{k}": 0.5 + 0.01 * k for k in range(8)} for seed in (0, 1, 7)}
    gains = {0: 0.02, 1: 0.04, 5: 9.0}
    better = {seed: {case: value + gain for case, value in base[0].items()} for seed, gain in gains.items()}
    better[1] = {**better[1], "only here": 1.0}
    better[0]["c7"] = float("nan")
    found = over_cases({"a": base, "b": better, "c": {9: base[0]}}, "a")
    assert set(found) == {"b"}
    assert found["b"].mean == pytest.approx(0.03)
    assert found["b"].pairs == found["b"].better == 7
    assert found["b"].interval == pytest.approx((0.03, 0.03))
    assert found["b"].p_value == pytest.approx(2 / 2**7)


def test_holm_by_hand():
    assert holm({"x": 0.01, "y": 0.04, "z": 0.03}) == pytest.approx({"x": 0.03, "z": 0.06, "y": 0.06})
    assert holm({"x": 0.9, "y": 0.8}) == {"y": 1.0, "x": 1.0}


def test_ranks_share_ties_and_follow_the_measure():
    values = {"a": {0: 0.9, 1: 0.9}, "b": {0: 0.5, 1: 0.9}, "c": {0: 0.1, 1: 0.1}}
    assert ranks(values) == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert ranks(values, lower_is_better=True) == {"a": 2.75, "b": 2.25, "c": 1.0}
    assert ranks({"a": {0: 1.0}, "b": {1: 1.0}}) == {}


def test_ranks_are_over_seeds_at_which_every_arm_is_defined():
    values = {"a": {0: 0.9, 1: 0.1, 2: 0.5}, "b": {0: 0.5, 1: float("nan"), 2: 0.6}}
    assert ranks(values) == {"a": 1.5, "b": 1.5}
    assert ranks({"a": {0: 0.9}, "b": {0: float("nan")}}) == {}


@pytest.mark.parametrize("seeds", [2, 4, 9])
def test_the_smallest_difference_is_found_in_four_of_five_studies(seeds):
    truth = smallest_difference(0.03, seeds)
    found = np.random.default_rng(seeds).normal(truth, 0.03, (20_000, seeds))
    assert (stats.ttest_1samp(found, 0.0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.012)


def test_what_can_be_found_follows_from_the_spread_of_differences():
    values = {"a": {0: 0.5, 1: 0.6, 2: 0.7}, "b": {0: 0.7, 1: 0.7, 2: 0.9}, "c": {0: 0.5, 1: 0.8, 3: 9.0}}
    values["d"] = {0: 1.0, 1: float("nan")}
    found = resolution(values, "a")
    # b - a: 0.2, 0.1, 0.2; c - a: 0.0, 0.2; d - a has one value that counts.
    squares = np.var([0.2, 0.1, 0.2]) * 3 + np.var([0.0, 0.2]) * 2
    assert found.freedom == 3
    assert found.deviation == pytest.approx(np.sqrt(squares / 3))
    assert found.smallest[4] == pytest.approx(smallest_difference(found.deviation, 4))
    assert resolution({"a": {0: 0.5, 1: 0.6}, "b": {1: 0.7, 2: 0.9}}, "a") is None
    assert resolution(values, "gone") is None


def test_rows_of_a_table_say_what_can_be_found():
    measures = {"dice": 0.01, "auroc": 0.1}
    rows = [
        {"evaluation": "voxels", "measure": measure, "arm": arm, "values": {"0": 0.5, "1": 0.5 + spread * place}}
        for measure, spread in measures.items()
        for place, arm in enumerate("ab")
    ]
    found = {one["measure"]: one for one in resolutions(rows, "a")}
    assert found["dice"]["deviation"] == pytest.approx(0.01 / np.sqrt(2))
    assert found["auroc"]["smallest"][2] == pytest.approx(10 * found["dice"]["smallest"][2])
    assert resolutions(rows[:1], "a") == []
    assert resolutions([{**row, "runs": 1 + (row["arm"] == "a")} for row in rows], "a") == [], "one pretraining of b"
