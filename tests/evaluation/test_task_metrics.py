"""Metrics equal those of scikit-learn; absent classes and single cases are handled."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from viewalign.evaluation import task_metrics
from viewalign.evaluation.task_metrics import evaluate, evaluate_samples, intervals, resample_counts
from viewalign.tasks.spec import METRICS


def softmax(rows):
    e = np.exp(rows - rows.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("count", [7, 31, 100])
def test_binary_figures_are_those_of_scikit_learn(count):
    rng = np.random.default_rng(count)
    truth = rng.permutation(np.arange(count) % 2)
    p = softmax(rng.normal(size=(count, 2)) + np.eye(2)[truth])
    guess = p.argmax(1)
    got = evaluate("binary", truth, p)
    want = {
        "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
        "auroc": sk.roc_auc_score(truth, p[:, 1]),
        "average_precision": sk.average_precision_score(truth, p[:, 1]),
        "f1": sk.f1_score(truth, guess),
        "accuracy": sk.accuracy_score(truth, guess),
        "sensitivity": sk.recall_score(truth, guess),
        "specificity": sk.recall_score(truth, guess, pos_label=0),
        "brier": sk.brier_score_loss(truth, p[:, 1]),
    }
    assert {name: got[name] for name in want} == pytest.approx(want)
    assert tuple(got) == METRICS["binary"]


@pytest.mark.parametrize("classes", [3, 4, 6])
def test_figures_of_many_classes_are_those_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, 40)])
    p = softmax(rng.normal(size=(len(truth), classes)) + 1.5 * np.eye(classes)[truth])
    got = evaluate("multiclass", truth, p)
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, p.argmax(1)))
    assert got["auroc"] == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr"))
    assert got["f1"] == pytest.approx(sk.f1_score(truth, p.argmax(1), average="macro"))
    one_hot = np.eye(classes)[truth]
    assert got["average_precision"] == pytest.approx(sk.average_precision_score(one_hot, p))
    assert got["brier"] == pytest.approx(((p - one_hot) ** 2).sum(1).mean())


def test_chance_of_four_classes_is_a_quarter():
    truth = np.tile(np.arange(4), 250)
    p = softmax(np.random.default_rng(0).normal(size=(1000, 4)))
    assert abs(evaluate("multiclass", truth, p)["balanced_accuracy"] - 0.25) < 0.04


def test_a_class_that_no_case_has_counts_in_no_mean():
    truth = np.array([0, 0, 1, 1, 0])
    p = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    got = evaluate("multiclass", truth, p)
    assert got["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert got["auroc"] == pytest.approx(
        (sk.roc_auc_score(truth == 0, p[:, 0]) + sk.roc_auc_score(truth == 1, p[:, 1])) / 2
    )


def test_one_class_alone_defines_no_auroc():
    p = softmax(np.random.default_rng(0).normal(size=(5, 2)))
    got = evaluate("binary", np.zeros(5, int), p)
    assert math.isnan(got["auroc"])
    assert math.isnan(got["sensitivity"])
    assert got["balanced_accuracy"] == pytest.approx(got["specificity"]) == pytest.approx((p.argmax(1) == 0).mean())


@pytest.mark.parametrize("kind", list(METRICS))
def test_a_single_case_is_evaluated(kind):
    truth = {"multilabel": np.array([[1, 0]]), "regression": np.array([3.0])}.get(kind, np.array([1]))
    predicted = np.array([2.0]) if kind == "regression" else np.array([[0.4, 0.6]])
    got = evaluate(kind, truth, predicted)
    assert tuple(got) == METRICS[kind]
    if kind == "regression":
        assert math.isnan(got["r2"])
        assert (got["mae"], got["mean_error"]) == (1.0, -1.0)


def test_regression_figures_are_those_of_scikit_learn_and_numpy():
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 10, 33)
    predicted = truth + rng.normal(1, 5, 33)
    got = evaluate("regression", truth, predicted)
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert got["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, predicted))
    assert got["r2"] == pytest.approx(sk.r2_score(truth, predicted))
    assert got["pearson"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1])
    ranks = [np.argsort(np.argsort(values)) for values in (truth, predicted)]
    assert got["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_multilabel_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (29, 3))
    p = np.clip(0.5 * rng.random((29, 3)) + 0.5 * truth * rng.random((29, 3)), 0, 1)
    got = evaluate("multilabel", truth, p)
    assert got["auroc"] == pytest.approx(sk.roc_auc_score(truth, p, average="macro"))
    guess = (p >= 0.5).astype(int)
    assert got["f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    each = [sk.balanced_accuracy_score(truth[:, k], guess[:, k]) for k in range(3)]
    assert got["balanced_accuracy"] == pytest.approx(np.mean(each))


def test_calibration_error_by_hand():
    truth = np.array([1, 1, 1, 0])
    p = np.array([[0.3, 0.7]] * 4)
    assert evaluate("binary", truth, p)["ece"] == pytest.approx(0.05)


def test_metrics_are_not_averaged_over_batches():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 21)
    p = softmax(rng.normal(size=(21, 2)) + np.eye(2)[truth])
    whole = evaluate("binary", truth, p)["auroc"]
    parts = [evaluate("binary", truth[k : k + 2], p[k : k + 2])["auroc"] for k in range(0, 21, 2)]
    assert whole == pytest.approx(sk.roc_auc_score(truth, p[:, 1]))
    assert any(math.isnan(part) for part in parts)


def test_subjects_are_resampled_with_all_cases():
    subjects = ["b", "a", "b", "c", "a", "a"]
    counts = resample_counts(subjects, 50, 0)
    for name in "abc":
        of_subject = counts[:, [k for k, subject in enumerate(subjects) if subject == name]]
        assert (of_subject == of_subject[:, :1]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert counts.max() > 1


@pytest.mark.parametrize("kind", list(METRICS))
@pytest.mark.parametrize("rounded", [False, True])
def test_samples_have_the_metrics_of_their_cases(kind, rounded, monkeypatch):
    """Those of cases repeated one by one; with equal scores and rare classes, and in parts of a few samples."""
    monkeypatch.setattr(task_metrics, "_MOST_VALUES", 100)
    rng = np.random.default_rng(5)
    classes = {"multiclass": 3, "regression": 1}.get(kind, 2)
    truth = rng.choice(classes, 23, p=[0.85, 0.1, 0.05][:classes] if classes == 3 else None)
    p = softmax(rng.normal(size=(23, classes)) + np.eye(classes)[truth])
    if kind == "multilabel":
        truth, p = rng.integers(0, 2, (23, 3)) * [1, 1, 0], rng.random((23, 3))
    if kind == "regression":
        truth = rng.normal(size=23)
        p = truth + rng.normal(size=23)
    if rounded:
        p = p.round(1)
    counts = resample_counts([str(k // 2) for k in range(23)], 40, 1)
    counts[0] = np.eye(23, dtype=int)[3] * 4  # one case
    found = evaluate_samples(kind, truth, p, counts)
    for k, count in enumerate(counts):
        rows = np.repeat(np.arange(23), count)
        want = evaluate(kind, truth[rows], p[rows])
        assert {name: found[name][k] for name in found} == pytest.approx(want, nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
def test_metrics_of_samples_are_those_of_other_libraries(seed):
    """With equal scores, without a class, with one class alone."""
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, 12, p=[0.5, 0.4, 0.1])
    p = softmax(rng.normal(size=(12, 3)) + np.eye(3)[truth]).round(2)
    got, guess = evaluate("multiclass", truth, p), p.argmax(1)
    present = np.unique(truth)
    of = [sk.roc_auc_score(truth == k, p[:, k]) for k in present] if len(present) > 1 else [math.nan]
    assert got["auroc"] == pytest.approx(np.mean(of), nan_ok=True)
    assert got["average_precision"] == pytest.approx(
        np.mean([sk.average_precision_score(truth == k, p[:, k]) for k in present])
    )
    assert got["f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro", zero_division=0.0))
    p = softmax(rng.normal(size=(12, 3)))  # no confidence on the edge of a bin
    tensors, got = (torch.from_numpy(p), torch.from_numpy(truth)), evaluate("multiclass", truth, p)
    assert got["ece"] == pytest.approx(
        float(torchmetrics.multiclass_calibration_error(*tensors, 3, 15, "l1")), abs=1e-6
    )
    values = rng.normal(size=12).round(1)
    got = evaluate("regression", values, p[:, 0])
    assert got["spearman"] == pytest.approx(stats.spearmanr(values, p[:, 0]).statistic)
    assert got["r2"] == pytest.approx(sk.r2_score(values, p[:, 0]))


def test_intervals_cover_what_they_should():
    """Of 60 experiments with a known mean absolute error, nearly all intervals hold it."""
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(60):
        error = rng.normal(size=40)
        ends = intervals("regression", np.zeros(40), error, [str(k) for k in range(40)], 200, seed)["mae"]
        held += ends[0] <= math.sqrt(2 / math.pi) <= ends[1]
    assert held >= 51


def test_repeated_cases_of_a_subject_do_not_narrow_an_interval():
    rng = np.random.default_rng(0)
    error = rng.normal(size=30)
    subjects = [str(k) for k in range(30)]
    once = intervals("regression", np.zeros(30), error, subjects, 300)["mae"]
    often = intervals("regression", np.zeros(300), np.repeat(error, 10), np.repeat(subjects, 10).tolist(), 300)["mae"]
    assert often == pytest.approx(once, abs=0.02)
    assert intervals("regression", np.zeros(4), error[:4], subjects[:4]) == dict.fromkeys(METRICS["regression"])


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    truth, subjects = rng.normal(size=50), [str(k) for k in range(50)]
    noise = rng.normal(size=50)
    ends = task_metrics.difference_intervals("regression", truth, truth + noise, truth + 0.9 * noise, subjects, 200)[
        "mae"
    ]
    assert ends[1] < 0
    assert ends[1] - ends[0] < 0.1
