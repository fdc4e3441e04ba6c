"""How good predictions are: each figure once over all cases, by scikit-learn and torchmetrics, with an interval.

No figure is ever a mean of figures of batches. A figure that the cases do not define (AUROC of one class) is NaN.
Intervals are percentiles over resampled subjects, so that two cases of one person are not taken for two people.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.tasks.spec import Kind
from viewalign.utils.rng import make_rng

Array = NDArray[Any]
Interval = tuple[float, float]

NAMES: dict[Kind, tuple[str, ...]] = {
    "binary": (
        "balanced_accuracy",
        "auroc",
        "average_precision",
        "f1",
        "accuracy",
        "sensitivity",
        "specificity",
        "brier",
        "ece",
    ),
    "multiclass": ("balanced_accuracy", "auroc", "average_precision", "f1", "accuracy", "brier", "ece"),
    "multilabel": ("balanced_accuracy", "auroc", "average_precision", "f1", "accuracy", "brier"),
    "regression": ("mae", "rmse", "r2", "pearson", "spearman", "mean_error"),
}
LOWER_IS_BETTER = {"brier", "ece", "mae", "rmse"}
FEWEST_SUBJECTS = 5
_BINS = 15


def evaluate(kind: Kind, truth: Array, predicted: Array) -> dict[str, float]:
    """Work out every figure of a kind of task.

    Args:
        kind: of the task.
        truth: (N,) classes by number, (N, K) zeros and ones of a multilabel task, or (N,) values.
        predicted: (N, K) probabilities, or (N,) values.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} targets and {len(predicted)} predictions")
    with warnings.catch_warnings():
        # scikit-learn warns of what is told here as NaN.
        warnings.simplefilter("ignore")
        if kind == "regression":
            return _regression(np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64))
        probabilities = np.asarray(predicted, dtype=np.float64)
        if kind == "multilabel":
            return _multilabel(np.asarray(truth).astype(np.int64), probabilities)
        return _one_class(kind, np.asarray(truth).astype(np.int64), probabilities)


def _one_class(kind: Kind, truth: Array, probabilities: Array) -> dict[str, float]:
    from sklearn import metrics

    guess, count = probabilities.argmax(axis=1), probabilities.shape[1]
    one_hot = np.eye(count, dtype=np.int64)[truth]
    binary = kind == "binary"
    scores = {
        "balanced_accuracy": _mean([float((guess[truth == k] == k).mean()) for k in np.unique(truth)]),
        "auroc": _auroc(truth, probabilities[:, 1]) if binary else _mean(_by_class(_auroc, one_hot, probabilities)),
        "average_precision": _precision(truth, probabilities[:, 1])
        if binary
        else _mean(_by_class(_precision, one_hot, probabilities)),
        "f1": float(metrics.f1_score(truth, guess, average="binary" if binary else "macro", zero_division=0.0)),
        "accuracy": float((truth == guess).mean()),
        "brier": float(np.square(probabilities - one_hot).sum(axis=1).mean()) / (2.0 if binary else 1.0),
        "ece": calibration_error(truth, probabilities),
    }
    if binary:
        scores["sensitivity"] = _share(guess[truth == 1] == 1)
        scores["specificity"] = _share(guess[truth == 0] == 0)
    return {name: scores[name] for name in NAMES[kind]}


def _multilabel(truth: Array, probabilities: Array) -> dict[str, float]:
    from sklearn import metrics

    guess = (probabilities >= 0.5).astype(np.int64)
    recalls = [
        _mean([_share(guess[truth[:, k] == side, k] == side) for side in np.unique(truth[:, k])])
        for k in range(truth.shape[1])
    ]
    scores = {
        "balanced_accuracy": _mean(recalls),
        "auroc": _mean(_by_class(_auroc, truth, probabilities)),
        "average_precision": _mean(_by_class(_precision, truth, probabilities)),
        "f1": float(metrics.f1_score(truth, guess, average="macro", zero_division=0.0)),
        "accuracy": float((truth == guess).mean()),
        "brier": float(np.square(probabilities - truth).mean()),
    }
    return {name: scores[name] for name in NAMES["multilabel"]}


def _regression(truth: Array, predicted: Array) -> dict[str, float]:
    from scipy import stats
    from sklearn import metrics

    error = predicted - truth
    varied = len(truth) > 1 and np.ptp(truth) > 0
    both = varied and np.ptp(predicted) > 0
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "r2": float(metrics.r2_score(truth, predicted)) if varied else math.nan,
        "pearson": float(stats.pearsonr(truth, predicted).statistic) if both else math.nan,
        "spearman": float(stats.spearmanr(truth, predicted).statistic) if both else math.nan,
        "mean_error": float(error.mean()),
    }


def calibration_error(truth: Array, probabilities: Array) -> float:
    """Return the expected calibration error of the winning class's probability, 15 bins (Guo et al., 2017)."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(truth), probabilities.shape[1], _BINS, "l1"
    )
    return float(error)


def _auroc(truth: Array, score: Array) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, score)) if 0 < truth.sum() < len(truth) else math.nan


def _precision(truth: Array, score: Array) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, score)) if truth.sum() else math.nan


def _by_class(figure: Any, truth: Array, probabilities: Array) -> list[float]:
    return [figure(truth[:, k], probabilities[:, k]) for k in range(truth.shape[1])]


def _share(right: Array) -> float:
    return float(right.mean()) if len(right) else math.nan


def _mean(values: Sequence[float]) -> float:
    """Return the mean of what is defined: a class that no case has does not count as 0."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def resample_subjects(subjects: Sequence[str], draws: int, seed: int) -> list[NDArray[np.int64]]:
    """Return rows of resampled subjects, all cases of each: the plain bootstrap over people."""
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    rows = [np.flatnonzero(index == k) for k in range(len(names))]
    rng = make_rng(seed, "subjects")
    return [np.concatenate([rows[k] for k in rng.integers(0, len(names), len(names))]) for _ in range(draws)]


def intervals(
    kind: Kind, truth: Array, predicted: Array, subjects: Sequence[str], draws: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the 95 % bootstrap interval of each figure over subjects; None below five of them.

    Draws in which a figure is not defined are left out of it; where that is half of them or more it has no interval.
    """
    if len(set(subjects)) < FEWEST_SUBJECTS:
        return dict.fromkeys(NAMES[kind])
    drawn = [evaluate(kind, truth[rows], predicted[rows]) for rows in resample_subjects(subjects, draws, seed)]
    return {name: _percentiles([one[name] for one in drawn]) for name in NAMES[kind]}


def _percentiles(values: Sequence[float]) -> Interval | None:
    defined = np.array([value for value in values if math.isfinite(value)])
    if len(defined) <= len(values) / 2:
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def difference_intervals(
    kind: Kind, truth: Array, first: Array, second: Array, subjects: Sequence[str], draws: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the 95 % interval of each figure's difference, second minus first, over the same resampled subjects."""
    if len(set(subjects)) < FEWEST_SUBJECTS:
        return dict.fromkeys(NAMES[kind])
    pairs = [
        (evaluate(kind, truth[rows], first[rows]), evaluate(kind, truth[rows], second[rows]))
        for rows in resample_subjects(subjects, draws, seed)
    ]
    return {name: _percentiles([b[name] - a[name] for a, b in pairs]) for name in NAMES[kind]}


def table(values: Mapping[str, float], ends: Mapping[str, Interval | None]) -> str:
    """Return a table for a terminal: a line a figure."""
    width = max(len(name) for name in values)
    lines = []
    for name, value in values.items():
        interval = ends.get(name)
        told = "" if interval is None else f"  {interval[0]:.3f} to {interval[1]:.3f}"
        lines.append(f"  {name:<{width}}  {'not defined' if math.isnan(value) else f'{value:.3f}'}{told}")
    return "\n".join(lines)
