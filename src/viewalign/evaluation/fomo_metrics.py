"""Metrics as the organisers of FOMO26 define them: what counts where a prediction is missing or a metric is undefined.

A missing prediction is NaN and counts as the worst one. Their segmentation rules are `evaluate empty=fomo26`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.evaluation.task_metrics import evaluate

Array = NDArray[Any]
Metric = Callable[[Array, Array], float]

WORST_ERROR, WORST_CORRELATION = 100.0, -100.0


def auroc(truth: Array, scores: Array) -> float:
    """Return the AUROC of scores (N,) of the positive class; NaN scores are the worst ones."""
    filled = np.where(np.isnan(scores), 1.0 - truth, scores)
    return evaluate("binary", truth, np.stack([1.0 - filled, filled], axis=1))["auroc"]


def ovr_auroc(truth: Array, probabilities: Array) -> float:
    """Return the macro one-versus-rest AUROC of probabilities (N, K); NaN if no class is defined.

    Classes that no case or every case has are left out; of two classes the second one counts. A row with NaN is 0 for
    the true class and 1/(K-1) for the others.
    """
    count = probabilities.shape[1]
    if count < 2:
        return math.nan
    filled, others = probabilities.astype(np.float64), 1.0 - np.eye(count)[truth]
    missing = np.isnan(filled).any(axis=1)
    filled[missing] = others[missing] / (count - 1)
    return auroc(truth, filled[:, 1]) if count == 2 else evaluate("multiclass", truth, filled)["auroc"]


def ovr_f1(truth: Array, probabilities: Array) -> float:
    """Return the macro F1 of the most probable classes, over classes in the truth or the predictions.

    A row with NaN is predicted as the class after the true one.
    """
    from sklearn.metrics import f1_score

    missing = np.isnan(probabilities).any(axis=1)
    predicted = np.where(missing, (truth + 1) % probabilities.shape[1], np.nan_to_num(probabilities).argmax(axis=1))
    return float(f1_score(truth, predicted, average="macro", zero_division=0.0))


def mean_absolute_error(truth: Array, predicted: Array) -> float:
    """Return the mean absolute error; 100 for no cases or another number of predictions."""
    if not len(truth) or len(truth) != len(predicted):
        return WORST_ERROR
    return float(np.abs(np.asarray(predicted, dtype=np.float64) - truth).mean())


def correlation(truth: Array, predicted: Array) -> float:
    """Return Pearson's r; -100 for fewer than two cases, constant values or another number of predictions."""
    if len(truth) < 2 or len(truth) != len(predicted):
        return WORST_CORRELATION
    value = evaluate("regression", truth, predicted)["pearson"]
    return WORST_CORRELATION if math.isnan(value) else value


def max_disparity(metric: Metric, truth: Array, predicted: Array, groups: Sequence[str]) -> float:
    """Return the largest difference of a metric between groups of cases.

    Args:
        metric: called with the targets and predictions of each group.
        truth: (N,).
        predicted: (N,) or (N, K).
        groups: of each case; empty if unknown, which leaves it out.

    Returns:
        The difference; 0 if the metric is defined in one group, NaN if in none.
    """
    if not len(truth) == len(predicted) == len(groups):
        raise ValueError(f"{len(truth)} targets, {len(predicted)} predictions and {len(groups)} groups")
    labels = np.asarray(groups)
    values = [metric(truth[labels == name], predicted[labels == name]) for name in sorted(set(groups) - {""})]
    defined = [value for value in values if not math.isnan(value)]
    return max(defined) - min(defined) if defined else math.nan


def fairness_score(disparities: Mapping[str, float]) -> float:
    """Return the mean of 1 - disparity over variables with a value, 1 for equal groups; NaN if there is none."""
    defined = [1.0 - value for value in disparities.values() if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
