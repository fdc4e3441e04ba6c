"""The rules of FOMO26's metrics, worked out by hand or counted pair by pair."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score

from viewalign.evaluation import fomo_metrics as metrics
from viewalign.evaluation.probe import fairness_of
from viewalign.evaluation.segmentation_metrics import Rules, score_maps
from viewalign.evaluation.task_metrics import score_predictions
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec

NAN = math.nan


def pairs(truth, scores):
    """Return the fraction of pairs of a positive and a negative in the right order."""
    values = [
        float(p > n) + 0.5 * float(p == n)
        for p, t in zip(scores, truth, strict=True)
        for n, u in zip(scores, truth, strict=True)
        if t and not u
    ]
    return sum(values) / len(values) if values else NAN


def test_a_missing_score_is_the_worst_one():
    truth = np.array([0, 1, 1, 0, 1])
    assert metrics.auroc(truth, np.array([0.2, 0.9, 0.3, 0.4, 0.8])) == pytest.approx(5 / 6)
    assert metrics.auroc(truth, np.array([0.2, NAN, 0.3, NAN, 0.8])) == pytest.approx(
        pairs(truth, [0.2, 0.0, 0.3, 1.0, 0.8])
    )
    assert math.isnan(metrics.auroc(np.ones(3, int), np.array([0.1, 0.2, 0.3])))


def test_ovr_auroc_is_the_mean_over_classes_with_both_kinds():
    rng = np.random.default_rng(0)
    truth, rows = rng.integers(0, 3, 40), rng.dirichlet(np.ones(4), 40)
    expected = np.mean([pairs(truth == k, rows[:, k]) for k in range(3)])
    assert metrics.ovr_auroc(truth, rows) == pytest.approx(expected)
    rows[5] = NAN
    filled = rows.copy()
    filled[5] = [0 if k == truth[5] else 1 / 3 for k in range(4)]
    expected = np.mean([pairs(truth == k, filled[:, k]) for k in range(3)])
    assert metrics.ovr_auroc(truth, rows) == pytest.approx(expected)
    assert math.isnan(metrics.ovr_auroc(np.zeros(3, int), np.ones((3, 1))))
    assert math.isnan(metrics.ovr_auroc(np.zeros(3, int), np.ones((3, 3))))


def test_ovr_auroc_of_two_classes_is_that_of_the_second():
    truth, rows = np.array([0, 1, 0, 1]), np.array([[0.1, 0.3], [0.9, 0.4], [0.2, 0.5], [0.3, 0.6]])
    assert metrics.ovr_auroc(truth, rows) == pytest.approx(pairs(truth, rows[:, 1]))


def test_f1_is_over_classes_that_are_true_or_predicted():
    rows = np.eye(4)[[0, 1, 2, 0]] * 0.9
    assert metrics.ovr_f1(np.array([0, 1, 1, 0]), rows) == pytest.approx((1 + 2 / 3 + 0) / 3)
    missing = rows.copy()
    missing[0] = NAN
    assert metrics.ovr_f1(np.array([0, 1, 1, 0]), missing) == pytest.approx(
        f1_score([0, 1, 1, 0], [1, 1, 2, 0], average="macro", zero_division=0)
    )
    assert metrics.ovr_f1(np.array([3, 3]), np.full((2, 4), NAN)) == 0.0


def test_errors_and_correlations_have_worst_values():
    truth = np.array([50.0, 60.0, 71.0])
    assert metrics.mean_absolute_error(truth, truth + np.array([1, -2, 3])) == pytest.approx(2.0)
    assert metrics.mean_absolute_error(truth, truth[:2]) == metrics.mean_absolute_error(truth[:0], truth[:0]) == 100.0
    assert metrics.correlation(truth, 2 * truth + 1) == pytest.approx(1.0)
    for pair in ((truth, truth[:2]), (truth[:1], truth[:1]), (truth, np.ones(3)), (np.ones(3), truth)):
        assert metrics.correlation(*pair) == -100.0


def test_a_disparity_is_between_the_best_and_the_worst_group():
    truth = np.array([0, 1, 0, 1, 0, 1, 1, 1])
    scores = np.array([0.1, 0.9, 0.8, 0.2, 0.3, 0.3, 0.1, 0.2])
    groups = ["a", "a", "b", "b", "c", "c", "", "d"]  # a 1, b 0, c 0.5; d is undefined, the unnamed case unknown
    assert metrics.max_disparity(metrics.auroc, truth, scores, groups) == 1.0
    assert metrics.max_disparity(metrics.auroc, truth, scores, ["", "", "", "", *groups[4:]]) == 0.0
    assert math.isnan(metrics.max_disparity(metrics.auroc, truth, scores, [""] * 8))
    with pytest.raises(ValueError, match="8 targets, 8 predictions and 2 groups"):
        metrics.max_disparity(metrics.auroc, truth, scores, ["a", "b"])


def test_fairness_is_one_less_the_mean_disparity():
    assert metrics.fairness_score({"age": 0.25, "sex": 0.05, "site": NAN}) == pytest.approx(0.85)
    assert math.isnan(metrics.fairness_score({"age": NAN}))


def test_a_probe_reports_fairness_by_variable():
    spec = TaskSpec.model_validate(
        {"name": "x", "kind": "binary", "channels": [{"name": "a"}], "classes": ["healthy", "ill"]}
    )
    groups = [{"sex": "f"}, {"sex": "f"}, {"sex": "m", "age": "60-69"}, {"sex": "m"}, {"sex": "m"}, {}]
    cases = [TaskCase(f"c{k}", f"s{k}", {}, target=k % 2, groups=group) for k, group in enumerate(groups)]
    second = np.array([0.1, 0.9, 0.7, 0.6, 0.2, 0.8])
    score = score_predictions(spec, cases, np.stack([1 - second, second], 1), 100, 0)
    found = fairness_of(score, cases, spec)
    assert found["auroc"]["disparity"]["sex"] == pytest.approx(1.0 - 0.5)
    assert math.isnan(found["auroc"]["disparity"]["age"])
    assert found["auroc"]["score"] == pytest.approx(0.5)
    # women: both right; men: one of three wrong, F1 of 2/3 for each class
    assert found["f1"]["disparity"] == {"sex": pytest.approx(1 / 3), "age": 0.0}
    plain = [TaskCase(case.case, case.subject, {}, target=case.target) for case in cases]
    assert fairness_of(score, plain, spec) == {}


def test_segmentation_rules():
    """One class in neither map has Dice 1 and NSD 0; of two, one that the reference lacks has no score."""
    empty, ball = np.zeros((8, 8, 8), int), np.zeros((8, 8, 8), int)
    ball[2:5, 2:5, 2:5] = 1
    single = Rules({"meningioma": (1,)}, {"meningioma": 1.0}, empty="fomo26")

    def scores(prediction, reference, rules):
        return {k: (v.dice, v.nsd) for k, v in score_maps(prediction, reference, (1, 1, 1), rules).items()}

    assert scores(empty, empty, single)["meningioma"] == (1.0, 0.0)
    assert scores(ball, empty, single)["meningioma"] == scores(empty, ball, single)["meningioma"] == (0.0, 0.0)
    both = Rules({"nerve": (1,), "vessel": (2,)}, {"nerve": 1.0, "vessel": 1.0}, empty="fomo26")
    found = scores(2 * ball, ball, both)
    assert found["nerve"] == (0.0, 0.0)
    assert np.isnan(found["vessel"]).all()
    assert scores(ball, ball, both)["nerve"] == (1.0, 1.0)
