"""Metrics of classification and regression over all cases, with bootstrap intervals over subjects.

Metrics are computed by scikit-learn and torchmetrics on all cases at once, never averaged over batches. A metric that
the cases do not define (AUROC of one class) is NaN. Intervals resample subjects, so that several cases of one subject
do not make them narrower.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.evaluation.statistics import Interval
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import Kind, TaskSpec
from viewalign.utils.rng import make_rng

Array = NDArray[Any]

_CLASSES = ("balanced_accuracy", "auroc", "average_precision", "f1", "accuracy")
NAMES: dict[Kind, tuple[str, ...]] = {
    "binary": (*_CLASSES, "sensitivity", "specificity", "brier", "ece"),
    "multiclass": (*_CLASSES, "brier", "ece"),
    "multilabel": (*_CLASSES, "brier"),
    "regression": ("mae", "rmse", "r2", "pearson", "spearman", "mean_error"),
}
LOWER_IS_BETTER = {"brier", "ece", "mae", "rmse"}
FEWEST_SUBJECTS = 5
_CALIBRATION_BINS = 15


def evaluate(kind: Kind, truth: Array, predicted: Array) -> dict[str, float]:
    """Compute all metrics of a kind of task.

    Args:
        kind: of the task.
        truth: (N,) class indices, (N, K) zeros and ones of a multilabel task, or (N,) values.
        predicted: (N, K) probabilities, or (N,) values.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} targets and {len(predicted)} predictions")
    predicted = np.asarray(predicted, dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns about undefined metrics, which are NaN here
        if kind == "regression":
            scores = _regression(np.asarray(truth, dtype=np.float64), predicted)
        elif kind == "multilabel":
            scores = _multilabel(np.asarray(truth).astype(np.int64), predicted)
        else:
            scores = _single_label(kind == "binary", np.asarray(truth).astype(np.int64), predicted)
    return {name: scores[name] for name in NAMES[kind]}


def _single_label(binary: bool, truth: Array, probabilities: Array) -> dict[str, float]:
    from sklearn import metrics

    predicted, one_hot = probabilities.argmax(axis=1), np.eye(probabilities.shape[1], dtype=np.int64)[truth]
    average = "binary" if binary else "macro"
    columns = [1] if binary else range(probabilities.shape[1])
    return {
        "balanced_accuracy": _mean([float((predicted[truth == k] == k).mean()) for k in np.unique(truth)]),
        "auroc": _mean([_auroc(one_hot[:, k], probabilities[:, k]) for k in columns]),
        "average_precision": _mean([_average_precision(one_hot[:, k], probabilities[:, k]) for k in columns]),
        "f1": float(metrics.f1_score(truth, predicted, average=average, zero_division=0.0)),
        "accuracy": float((truth == predicted).mean()),
        "sensitivity": _fraction(predicted[truth == 1] == 1),
        "specificity": _fraction(predicted[truth == 0] == 0),
        "brier": float(np.square(probabilities - one_hot).sum(axis=1).mean()) / (2.0 if binary else 1.0),
        "ece": calibration_error(truth, probabilities),
    }


def _multilabel(truth: Array, probabilities: Array) -> dict[str, float]:
    from sklearn import metrics

    predicted, columns = (probabilities >= 0.5).astype(np.int64), range(truth.shape[1])
    recalls = [
        _mean([_fraction(predicted[truth[:, k] == value, k] == value) for value in np.unique(truth[:, k])])
        for k in columns
    ]
    return {
        "balanced_accuracy": _mean(recalls),
        "auroc": _mean([_auroc(truth[:, k], probabilities[:, k]) for k in columns]),
        "average_precision": _mean([_average_precision(truth[:, k], probabilities[:, k]) for k in columns]),
        "f1": float(metrics.f1_score(truth, predicted, average="macro", zero_division=0.0)),
        "accuracy": float((truth == predicted).mean()),
        "brier": float(np.square(probabilities - truth).mean()),
    }


def _regression(truth: Array, predicted: Array) -> dict[str, float]:
    from scipy import stats
    from sklearn import metrics

    error = predicted - truth
    varied = len(truth) > 1 and np.ptp(truth) > 0
    both_varied = varied and np.ptp(predicted) > 0
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "r2": float(metrics.r2_score(truth, predicted)) if varied else math.nan,
        "pearson": float(stats.pearsonr(truth, predicted).statistic) if both_varied else math.nan,
        "spearman": float(stats.spearmanr(truth, predicted).statistic) if both_varied else math.nan,
        "mean_error": float(error.mean()),
    }


def calibration_error(truth: Array, probabilities: Array) -> float:
    """Return the expected calibration error of the predicted class's probability in 15 bins (Guo et al., 2017)."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    tensors = torch.from_numpy(probabilities), torch.from_numpy(truth)
    return float(multiclass_calibration_error(*tensors, probabilities.shape[1], _CALIBRATION_BINS, "l1"))


def _auroc(truth: Array, score: Array) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, score)) if 0 < truth.sum() < len(truth) else math.nan


def _average_precision(truth: Array, score: Array) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, score)) if truth.sum() else math.nan


def _fraction(correct: Array) -> float:
    return float(correct.mean()) if len(correct) else math.nan


def _mean(values: Sequence[float]) -> float:
    """Return the mean of defined values: a class without cases does not count as 0."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def resample_subjects(subjects: Sequence[str], draws: int, seed: int) -> list[NDArray[np.int64]]:
    """Return row indices of bootstrap samples of subjects, with all cases of each drawn subject."""
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    rows = [np.flatnonzero(index == k) for k in range(len(names))]
    rng = make_rng(seed, "subjects")
    return [np.concatenate([rows[k] for k in rng.integers(0, len(names), len(names))]) for _ in range(draws)]


def intervals(
    kind: Kind, truth: Array, predicted: Array, subjects: Sequence[str], draws: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the 95 % bootstrap interval of each metric over subjects; None below five subjects.

    Bootstrap samples in which a metric is undefined are ignored; if these are at least half of them, it has no
    interval.
    """
    if len(set(subjects)) < FEWEST_SUBJECTS:
        return dict.fromkeys(NAMES[kind])
    samples = [evaluate(kind, truth[rows], predicted[rows]) for rows in resample_subjects(subjects, draws, seed)]
    return {name: _percentiles([sample[name] for sample in samples]) for name in NAMES[kind]}


def difference_intervals(
    kind: Kind, truth: Array, first: Array, second: Array, subjects: Sequence[str], draws: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the 95 % interval of each metric's difference, second minus first, over the same bootstrap samples."""
    if len(set(subjects)) < FEWEST_SUBJECTS:
        return dict.fromkeys(NAMES[kind])
    pairs = [
        (evaluate(kind, truth[rows], first[rows]), evaluate(kind, truth[rows], second[rows]))
        for rows in resample_subjects(subjects, draws, seed)
    ]
    return {name: _percentiles([b[name] - a[name] for a, b in pairs]) for name in NAMES[kind]}


def _percentiles(values: Sequence[float]) -> Interval | None:
    defined = np.array([value for value in values if math.isfinite(value)])
    if len(defined) <= len(values) / 2:
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class TaskScore:
    """Metrics of predictions for the cases of a task.

    Attributes:
        values: metrics over all evaluated cases.
        intervals: their 95 % bootstrap intervals over subjects.
        predicted: (N, K) probabilities or (N,) values, in the order of `cases`.
        cases: names of the evaluated cases.
        chosen: hyperparameters of a probe, by fold.
    """

    values: dict[str, float]
    intervals: dict[str, Interval | None]
    predicted: Array = field(repr=False)
    cases: tuple[str, ...] = field(repr=False)
    chosen: tuple[str, ...] = ()


def score_predictions(
    spec: TaskSpec, cases: Sequence[TaskCase], predicted: Array, draws: int, seed: int, chosen: tuple[str, ...] = ()
) -> TaskScore:
    """Compute metrics of predictions (N, K) or (N,) for cases with targets, with `draws` bootstrap samples."""
    truth, subjects = np.array([case.target for case in cases]), [case.subject for case in cases]
    values = evaluate(spec.kind, truth, predicted)
    ends = intervals(spec.kind, truth, predicted, subjects, draws, seed)
    return TaskScore(values, ends, predicted, tuple(case.case for case in cases), chosen)


def table(values: Mapping[str, float], ends: Mapping[str, Interval | None]) -> str:
    """Format metrics as a table for a terminal."""
    width = max(len(name) for name in values)
    lines = []
    for name, value in values.items():
        interval = ends.get(name)
        text = "" if interval is None else f"  {interval[0]:.3f} to {interval[1]:.3f}"
        lines.append(f"  {name:<{width}}  {'not defined' if math.isnan(value) else f'{value:.3f}'}{text}")
    return "\n".join(lines)
