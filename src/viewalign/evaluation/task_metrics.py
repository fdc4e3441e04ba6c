"""Metrics of classification and regression over all cases, with bootstrap intervals over subjects.

Metrics are computed on all cases at once, never averaged over batches, and equal those of scikit-learn. A metric that
the cases do not define (AUROC of one class) is NaN. Intervals resample subjects, so that several cases of one subject
do not make them narrower. All bootstrap samples are evaluated together, as counts of each case: a thousand calls of
scikit-learn's functions take ten seconds even for a dozen cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.evaluation.statistics import Interval
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import METRICS, Kind, TaskSpec
from viewalign.utils.rng import make_rng

Array = NDArray[Any]

LOWER_IS_BETTER = {"brier", "ece", "mae", "rmse"}
FEWEST_SUBJECTS = 5
_CALIBRATION_BINS = 15
_MOST_VALUES = 2**22
"""Largest number of counts that are evaluated at once, 32 MB."""


def evaluate(kind: Kind, truth: Array, predicted: Array) -> dict[str, float]:
    """Compute all metrics of a kind of task.

    Args:
        kind: of the task.
        truth: (N,) class indices, (N, K) zeros and ones of a multilabel task, or (N,) values.
        predicted: (N, K) probabilities, or (N,) values.
    """
    samples = evaluate_samples(kind, truth, predicted, np.ones((1, len(truth))))
    return {name: float(values[0]) for name, values in samples.items()}


def evaluate_samples(kind: Kind, truth: Array, predicted: Array, counts: Array) -> dict[str, Array]:
    """Compute all metrics of S samples of the cases, (S,) each.

    Args:
        kind, truth, predicted: as for `evaluate`.
        counts: (S, N) how often each sample contains each case.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} targets and {len(predicted)} predictions")
    predicted = np.asarray(predicted, dtype=np.float64)
    truth = np.asarray(truth, dtype=np.float64 if kind == "regression" else np.int64)
    parts = [_metrics_of(kind, truth, predicted, part) for part in _parts(counts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS[kind]}


def _parts(counts: Array) -> Iterator[Array]:
    """Yield the samples in parts of limited memory."""
    size = max(1, _MOST_VALUES // max(counts.shape[1], 1))
    for begin in range(0, len(counts), size):
        yield counts[begin : begin + size].astype(np.float64)


def _metrics_of(kind: Kind, truth: Array, predicted: Array, counts: Array) -> dict[str, Array]:
    if kind == "regression":
        return _regression(truth, predicted, counts)
    if kind == "multilabel":
        return _multilabel(truth, predicted, counts)
    return _single_label(kind == "binary", truth, predicted, counts)


def _single_label(binary: bool, truth: Array, probabilities: Array, counts: Array) -> dict[str, Array]:
    classes = range(probabilities.shape[1])
    guess, one_hot = probabilities.argmax(axis=1), np.eye(len(classes), dtype=np.int64)[truth]
    recalls = [_fraction(guess == k, counts * (truth == k)) for k in classes]
    f1 = [_f1(truth == k, guess == k, counts) for k in classes]
    ranked = [_by_score(truth == k, probabilities[:, k], counts) for k in ([1] if binary else classes)]
    return {
        "balanced_accuracy": _mean_defined(recalls),
        "auroc": _mean_defined([_auroc(*pair) for pair in ranked]),
        "average_precision": _mean_defined([_average_precision(*pair) for pair in ranked]),
        "f1": np.nan_to_num(f1[1]) if binary else _mean_defined(f1),
        "accuracy": _fraction(truth == guess, counts),
        "sensitivity": recalls[-1],
        "specificity": recalls[0],
        "brier": _mean(np.square(probabilities - one_hot).sum(axis=1), counts) / (2.0 if binary else 1.0),
        "ece": _calibration_error(truth == guess, probabilities.max(axis=1), counts),
    }


def _multilabel(truth: Array, probabilities: Array, counts: Array) -> dict[str, Array]:
    guess, columns = (probabilities >= 0.5).astype(np.int64), range(truth.shape[1])
    recalls = [
        _mean_defined([_fraction(guess[:, k] == value, counts * (truth[:, k] == value)) for value in (0, 1)])
        for k in columns
    ]
    f1 = [np.nan_to_num(_f1(truth[:, k] == 1, guess[:, k] == 1, counts)) for k in columns]
    ranked = [_by_score(truth[:, k] == 1, probabilities[:, k], counts) for k in columns]
    return {
        "balanced_accuracy": _mean_defined(recalls),
        "auroc": _mean_defined([_auroc(*pair) for pair in ranked]),
        "average_precision": _mean_defined([_average_precision(*pair) for pair in ranked]),
        "f1": _mean_defined(f1),
        "accuracy": _fraction((truth == guess).mean(axis=1), counts),
        "brier": _mean(np.square(probabilities - truth).mean(axis=1), counts),
    }


def _regression(truth: Array, predicted: Array, counts: Array) -> dict[str, Array]:
    error = predicted - truth
    varied = _spread(truth, counts) > 0
    both_varied = varied & (_spread(predicted, counts) > 0)
    deviation = truth - _mean(truth, counts)[:, None]
    residual = _ratio(counts @ np.square(error), (counts * np.square(deviation)).sum(axis=1))
    ranks = _ranks(truth, counts), _ranks(predicted, counts)
    return {
        "mae": _mean(np.abs(error), counts),
        "rmse": np.sqrt(_mean(np.square(error), counts)),
        "r2": np.where(varied, 1 - residual, math.nan),
        "pearson": np.where(both_varied, _correlation(truth, predicted, counts), math.nan),
        "spearman": np.where(both_varied, _correlation(*ranks, counts), math.nan),
        "mean_error": _mean(error, counts),
    }


def _calibration_error(correct: Array, confidence: Array, counts: Array) -> Array:
    """Return the expected calibration error of the predicted class's probability in 15 bins (Guo et al., 2017).

    A bin contains its upper end, as published.
    """
    edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)
    inside = np.eye(len(edges) + 1)[np.digitize(confidence, edges, right=True)]
    return _ratio(np.abs((counts * (correct - confidence)) @ inside).sum(axis=1), counts.sum(axis=1))


def _by_score(truth: Array, score: Array, counts: Array) -> tuple[Array, Array]:
    """Return how many positive and how many negative cases have each score, ascending, (S, G) each."""
    return _sum_of_equal(score, counts * truth), _sum_of_equal(score, counts * ~truth)


def _auroc(positive: Array, negative: Array) -> Array:
    """Return the fraction of pairs of a positive and a negative case in the right order; equal scores count half."""
    lower = negative.cumsum(axis=1) - negative
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _ratio((positive * (lower + negative / 2)).sum(axis=1), pairs)


def _average_precision(positive: Array, negative: Array) -> Array:
    """Return the mean precision over the steps of recall, without interpolation, as scikit-learn."""
    positive, every = positive[:, ::-1], (positive + negative)[:, ::-1]
    precision = positive.cumsum(axis=1) / np.maximum(every.cumsum(axis=1), 1)
    return _ratio((positive * precision).sum(axis=1), positive.sum(axis=1))


def _sum_of_equal(values: Array, counts: Array) -> Array:
    """Return the counts (S, G) of each distinct value, ascending."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.diff(values[order], prepend=-np.inf) > 0)
    sums: Array = np.add.reduceat(counts[:, order], first, axis=1)
    return sums


def _ranks(values: Array, counts: Array) -> Array:
    """Return the rank (S, N) of each case's value in each sample; equal values share their mean rank."""
    _, place = np.unique(values, return_inverse=True)
    equal = _sum_of_equal(values, counts)
    ranks: Array = equal.cumsum(axis=1) - (equal - 1) / 2
    return ranks[:, place]


def _correlation(a: Array, b: Array, counts: Array) -> Array:
    """Return Pearson's correlation of values (N,) or (S, N) in each sample."""
    a, b = (values - _mean(values, counts)[:, None] for values in (a, b))
    scale = np.sqrt((counts * a * a).sum(axis=1) * (counts * b * b).sum(axis=1))
    return _ratio((counts * a * b).sum(axis=1), scale)


def _spread(values: Array, counts: Array) -> Array:
    """Return the range of the values in each sample."""
    present = counts > 0
    highest: Array = np.where(present, values, -np.inf).max(axis=1)
    lowest: Array = np.where(present, values, np.inf).min(axis=1)
    return highest - lowest


def _f1(truth: Array, guess: Array, counts: Array) -> Array:
    """Return the F1 score of a class; NaN if no case is or is predicted as it."""
    return _ratio(counts @ (2.0 * (truth & guess)), counts @ truth + counts @ guess)


def _fraction(correct: Array, counts: Array) -> Array:
    return _ratio(counts @ correct, counts.sum(axis=1))


def _mean(values: Array, counts: Array) -> Array:
    return _ratio((counts * values).sum(axis=1), counts.sum(axis=1))


def _ratio(above: Array, below: Array) -> Array:
    """Divide; NaN where the denominator is 0."""
    out: Array = np.full(len(above), math.nan)
    return np.divide(above, below, out=out, where=below > 0)


def _mean_defined(values: Sequence[Array]) -> Array:
    """Return the mean of defined values: a class without cases does not count as 0."""
    stacked = np.array(values)
    defined = ~np.isnan(stacked)
    return _ratio(np.where(defined, stacked, 0).sum(axis=0), defined.sum(axis=0))


def resample_counts(subjects: Sequence[str], draws: int, seed: int) -> NDArray[np.int64]:
    """Return how often each bootstrap sample of subjects contains each case, (draws, N)."""
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    rng = make_rng(seed, "subjects")
    drawn = [np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(draws)]
    return np.array(drawn, dtype=np.int64)[:, index]


def intervals(
    kind: Kind, truth: Array, predicted: Array, subjects: Sequence[str], draws: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the 95 % bootstrap interval of each metric over subjects; None below five subjects.

    Bootstrap samples in which a metric is undefined are ignored; if these are at least half of them, it has no
    interval.
    """
    if len(set(subjects)) < FEWEST_SUBJECTS:
        return dict.fromkeys(METRICS[kind])
    samples = evaluate_samples(kind, truth, predicted, resample_counts(subjects, draws, seed))
    return {name: _percentiles(samples[name]) for name in METRICS[kind]}


def difference_intervals(
    kind: Kind, truth: Array, first: Array, second: Array, subjects: Sequence[str], draws: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the 95 % interval of each metric's difference, second minus first, over the same bootstrap samples."""
    if len(set(subjects)) < FEWEST_SUBJECTS:
        return dict.fromkeys(METRICS[kind])
    counts = resample_counts(subjects, draws, seed)
    a, b = (evaluate_samples(kind, truth, predicted, counts) for predicted in (first, second))
    return {name: _percentiles(b[name] - a[name]) for name in METRICS[kind]}


def _percentiles(values: Array) -> Interval | None:
    defined = values[np.isfinite(values)]
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
