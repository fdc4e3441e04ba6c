"""Paired comparison of two evaluations or of two fine-tunings on the same cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation import task_metrics
from viewalign.evaluation.predictions import TaskPredictions, is_task_run, read_predictions
from viewalign.evaluation.results import MEAN, METRICS, Evaluation, Metric, read_evaluation
from viewalign.evaluation.statistics import Difference, Interval, align_columns, paired
from viewalign.utils.io import plain_values
from viewalign.utils.rng import make_rng

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Segmentation evaluation b against a, on the cases of both.

    Attributes:
        a, b: their names.
        cases: names of the compared cases.
        differences: b minus a, by metric and class, and for the mean over classes ("mean").
        values: by metric, the mean over classes of each case in (a, b).
        left_out: cases of only one evaluation.
    """

    a: str
    b: str
    cases: tuple[str, ...]
    differences: Mapping[Metric, Mapping[str, Difference]]
    values: Mapping[Metric, tuple[Values, Values]]
    left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "a": self.a,
            "b": self.b,
            "cases": list(self.cases),
            "left_out": list(self.left_out),
            "difference": {m: {k: asdict(d) for k, d in by.items()} for m, by in self.differences.items()},
        }

    def table(self) -> str:
        """Format a table for a terminal."""
        rows = [("", "class", "b - a", "95 % interval", "p", "cases", "better", "worse")]
        for metric, name in zip(METRICS, ("Dice", "NSD"), strict=True):
            for label, difference in self.differences[metric].items():
                ends, p_value = _interval_text(difference.interval, 4), _p_value_text(difference.p_value)
                counts = (str(difference.pairs), str(difference.better), str(difference.worse))
                rows.append((name, label, f"{difference.mean:+.4f}", ends, p_value, *counts))
        return align_columns(rows)


@dataclass(frozen=True)
class TaskComparison:
    """Fine-tuning b against a, on the cases of both.

    Attributes:
        a, b: metrics of each.
        intervals: 95 % intervals of b minus a, over the same bootstrap samples of subjects.
        p_values: two-sided, of permutations that exchange both predictions of some subjects.
        cases: names of the compared cases.
        scores: of each case under a and b (`TaskPredictions.case_scores`).
        kind, primary: kind and primary metric of the task.
        names: of the two runs.
        left_out: cases of only one run.
    """

    a: dict[str, float]
    b: dict[str, float]
    intervals: dict[str, Interval | None]
    p_values: dict[str, float | None]
    cases: tuple[str, ...]
    scores: tuple[Values, Values]
    kind: str
    primary: str
    names: tuple[str, str]
    left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values; undefined values are None."""
        figures = {
            name: {
                "a": self.a[name],
                "b": self.b[name],
                "difference": self.b[name] - self.a[name],
                "interval": self.intervals[name],
                "p_value": self.p_values[name],
            }
            for name in self.a
        }
        a, b = self.names
        tree = {"a": a, "b": b, "cases": self.cases, "left_out": self.left_out, "figures": figures}
        plain: dict[str, Any] = plain_values(tree)
        return plain

    def table(self) -> str:
        """Format a table for a terminal."""
        rows = [("", "A", "B", "B - A", "95 % interval", "p", "")]
        for name, a in self.a.items():
            b, ends, p_value = self.b[name], _interval_text(self.intervals[name], 3), _p_value_text(self.p_values[name])
            note = "lower is better" if name in task_metrics.LOWER_IS_BETTER else ""
            rows.append((name, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}", ends, p_value, note))
        return align_columns(rows)


def _interval_text(interval: Interval | None, digits: int) -> str:
    return "-" if interval is None else f"{interval[0]:+.{digits}f} to {interval[1]:+.{digits}f}"


def _p_value_text(p_value: float | None) -> str:
    return "-" if p_value is None else f"{p_value:.4f}"


def compare_any(a: Path, b: Path) -> Comparison | TaskComparison:
    """Compare two evaluations of segmentations, or two fine-tunings for classification or regression.

    Raises:
        UserError: results of different kinds, or that cannot be compared.
    """
    kinds = [is_task_run(folder) for folder in (a, b)]
    if all(kinds):
        return compare_runs(a, b)
    if any(kinds):
        run, other = (a, b) if kinds[0] else (b, a)
        raise UserError(f"{run} is a fine-tuning with predictions.csv, but {other} is not.")
    return compare(read_evaluation(a), read_evaluation(b), (str(a), str(b)))


def _shared(a: Iterable[str], b: Iterable[str], names: tuple[str, str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the sorted cases of both, and of only one."""
    left, right = set(a), set(b)
    shared, other = left & right, left ^ right
    if not shared:
        raise UserError(f"{names[0]} and {names[1]} have no case in common.")
    return sorted(shared), tuple(sorted(other))


def compare(a: Evaluation, b: Evaluation, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare two evaluations of segmentations case by case.

    Raises:
        UserError: they used different rules or references, or have no case in common.
    """
    for what in ("classes", "tolerances", "ignore", "empty"):
        first, second = getattr(a.rules, what), getattr(b.rules, what)
        if first != second:
            raise UserError(f"{names[0]} and {names[1]} were evaluated with different {what} ({first} and {second}).")
    shared, other = _shared((case.name for case in a.cases), (case.name for case in b.cases), names)
    left, right = a.select(shared), b.select(shared)
    for p, q in zip(left.cases, right.cases, strict=True):
        if p.reference_sha256 != q.reference_sha256:
            raise UserError(f"{names[0]} and {names[1]} were evaluated against different references of {p.name}.")
    scores = {m: _comparable(left, right, m) for m in METRICS}
    differences = {m: {label: paired(*both) for label, both in by.items()} for m, by in scores.items()}
    return Comparison(*names, tuple(shared), differences, {m: by[MEAN] for m, by in scores.items()}, other)


def _comparable(left: Evaluation, right: Evaluation, metric: Metric) -> dict[str, tuple[Values, Values]]:
    """Return the values of both evaluations by class, and their means over the same classes of each case.

    A class that is in neither map has no score. If the other evaluation has a score, because it found the class where
    the reference has none, the correct absence counts 1: such cases would show no difference otherwise.
    """
    found: dict[str, tuple[Values, Values]] = {}
    for label in left.rules.classes:
        a, b = left.values(metric, label), right.values(metric, label)
        found[label] = np.where(np.isnan(a) & ~np.isnan(b), 1.0, a), np.where(np.isnan(b) & ~np.isnan(a), 1.0, b)
    a, b = (_mean_over_classes([both[k] for both in found.values()]) for k in (0, 1))
    return {**found, MEAN: (a, b)}


def _mean_over_classes(values: Sequence[Values]) -> Values:
    """Return each case's mean over the classes that have a score; NaN if none has."""
    table = np.stack(values)
    counts = np.isfinite(table).sum(0)
    return np.where(counts > 0, np.nansum(table, 0) / np.maximum(counts, 1), np.nan)


def compare_runs(a: Path, b: Path, draws: int = 1000, seed: int = 0) -> TaskComparison:
    """Compare two fine-tunings on the test cases if both predicted any, otherwise on held-out cases.

    Raises:
        UserError: different tasks or targets, or no case in common.
    """
    first, second = read_predictions(a), read_predictions(b)
    if first.spec != second.spec:
        raise UserError(f"{a} and {b} are of different tasks.")
    test = "test" in first.folds and "test" in second.folds
    first, second = first.of_folds(test), second.of_folds(test)
    shared, other = _shared(first.cases, second.cases, (str(a), str(b)))
    left, right = (run.select([run.cases.index(name) for name in shared]) for run in (first, second))
    for k, name in enumerate(shared):
        if left.subjects[k] != right.subjects[k] or not np.array_equal(left.truth[k], right.truth[k]):
            raise UserError(f"{a} and {b} differ in subject or target of {name}.")
    kind, truth = left.spec.kind, left.truth
    intervals = task_metrics.difference_intervals(
        kind, truth, left.predicted, right.predicted, left.subjects, draws, seed
    )
    return TaskComparison(
        a=task_metrics.evaluate(kind, truth, left.predicted),
        b=task_metrics.evaluate(kind, truth, right.predicted),
        intervals=intervals,
        p_values=exchange_p_values(left, right.predicted, draws, seed),
        cases=tuple(shared),
        scores=(left.case_scores(), right.case_scores()),
        kind=kind,
        primary=left.spec.figure,
        names=(str(a), str(b)),
        left_out=other,
    )


def exchange_p_values(
    left: TaskPredictions, right: Values, draws: int = 1000, seed: int = 0
) -> dict[str, float | None]:
    """Return a two-sided permutation p-value of each metric's difference.

    Under the null hypothesis both predictions of a subject can be exchanged. All exchanges are evaluated if there are
    at most `draws`, otherwise the observed assignment and random ones (Phipson & Smyth, 2010). None if the metric is
    undefined or there is only one subject.
    """
    names, index = np.unique(np.asarray(left.subjects), return_inverse=True)
    swapped = _exchanges(len(names), draws, seed)[:, index]
    kept, predicted = ~swapped, np.concatenate([left.predicted, right])
    first, second = (
        task_metrics.evaluate_samples(left.spec.kind, np.concatenate([left.truth] * 2), predicted, np.hstack(chosen))
        for chosen in ((kept, swapped), (swapped, kept))
    )
    differences = {name: second[name] - first[name] for name in first}
    return {name: _p_value(d[0], d) if len(names) > 1 else None for name, d in differences.items()}


def _exchanges(subjects: int, draws: int, seed: int) -> NDArray[np.bool_]:
    """Return which subjects are exchanged in each permutation, (permutations, subjects); first no one."""
    if 2**subjects <= draws:
        return np.array(list(product((False, True), repeat=subjects)))
    rng = make_rng(seed, "exchanges")
    return np.concatenate([np.zeros((1, subjects), dtype=bool), rng.random((draws - 1, subjects)) < 0.5])


def _p_value(observed: float, permuted: NDArray[np.float64]) -> float | None:
    values = permuted[np.isfinite(permuted)]
    if not math.isfinite(observed) or not len(values):
        return None
    return float((np.abs(values) >= abs(observed) - 1e-12).mean())
