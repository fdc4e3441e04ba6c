"""Two sets of predictions of the same cases: which is better, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation import task_metrics
from viewalign.evaluation.comparison import Comparison, compare
from viewalign.evaluation.results import read_evaluation
from viewalign.finetuning.classification.outcomes import Outcomes, is_task_run, read_outcomes
from viewalign.utils.rng import make_rng


@dataclass(frozen=True)
class TaskComparison:
    """Run b against run a, on the cases of both.

    Attributes:
        a, b: figures of each.
        intervals: 95 % intervals of b minus a, over the same resampled subjects.
        p_values: two-sided, of permutations that exchange the two runs' answers for some subjects.
        cases: names of the cases compared.
        scores: of each case under a and under b (`Outcomes.case_scores`).
        kind, primary: of the task.
        names: of the two runs.
        left_out: cases of one of the two alone.
    """

    a: dict[str, float]
    b: dict[str, float]
    intervals: dict[str, task_metrics.Interval | None]
    p_values: dict[str, float | None]
    cases: tuple[str, ...]
    scores: tuple[NDArray[np.float64], NDArray[np.float64]]
    kind: str
    primary: str
    names: tuple[str, str]
    left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values; what is not defined is None."""
        told = {
            name: {
                "a": _plain(self.a[name]),
                "b": _plain(self.b[name]),
                "difference": _plain(self.b[name] - self.a[name]),
                "interval": self.intervals[name],
                "p_value": self.p_values[name],
            }
            for name in self.a
        }
        return {
            "a": self.names[0],
            "b": self.names[1],
            "cases": list(self.cases),
            "left_out": list(self.left_out),
            "figures": told,
        }

    def table(self) -> str:
        """Return a table for a terminal; figures of which less is better are marked."""
        rows = [("", "A", "B", "B - A", "95 % interval", "p", "")]
        for name in self.a:
            ends, chance = self.intervals[name], self.p_values[name]
            rows.append(
                (
                    name,
                    f"{self.a[name]:.3f}",
                    f"{self.b[name]:.3f}",
                    f"{self.b[name] - self.a[name]:+.3f}",
                    "-" if ends is None else f"{ends[0]:+.3f} to {ends[1]:+.3f}",
                    "-" if chance is None else f"{chance:.4f}",
                    "lower is better" if name in task_metrics.LOWER_IS_BETTER else "",
                )
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare_runs(a: Path, b: Path, draws: int = 1000, seed: int = 0) -> TaskComparison:
    """Compare two fine-tunings by their `predictions.csv`: on test cases where both have some, else on held-out ones.

    Raises:
        UserError: other tasks, other targets, or no case in common.
    """
    first, second = read_outcomes(a), read_outcomes(b)
    tested = "test" in first.folds and "test" in second.folds
    first, second = first.of_folds(tested), second.of_folds(tested)
    if first.spec != second.spec:
        raise UserError(f"{a} and {b} are of different tasks.")
    everyone, shared = set(first.cases) | set(second.cases), sorted(set(first.cases) & set(second.cases))
    if not shared:
        raise UserError(f"{a} and {b} have no case in common.")
    left, right = (one.select([one.cases.index(name) for name in shared]) for one in (first, second))
    for k, name in enumerate(shared):
        if left.subjects[k] != right.subjects[k] or not np.array_equal(left.truth[k], right.truth[k]):
            raise UserError(f"{a} and {b} differ in subject or target of {name}.")
    kind, truth = left.spec.kind, left.truth
    ends = task_metrics.difference_intervals(kind, truth, left.predicted, right.predicted, left.subjects, draws, seed)
    scores = [task_metrics.evaluate(kind, truth, one.predicted) for one in (left, right)]
    return TaskComparison(
        scores[0],
        scores[1],
        ends,
        exchange_p_values(left, right.predicted, draws, seed),
        tuple(shared),
        (left.case_scores(), right.case_scores()),
        kind,
        left.spec.figure,
        (str(a), str(b)),
        tuple(sorted(everyone - set(shared))),
    )


def exchange_p_values(
    left: Outcomes, right: NDArray[np.float64], draws: int = 1000, seed: int = 0
) -> dict[str, float | None]:
    """Return a two-sided p-value of each figure's difference: how often chance exchanges give one as large.

    If neither run were better, each subject's two sets of answers could be exchanged. All exchanges are tried where
    there are few enough, else `draws` random ones beside the one that is (Phipson & Smyth, 2010). None where the
    figure is not defined, or there is one subject alone.
    """
    people, index = np.unique(np.asarray(left.subjects), return_inverse=True)
    observed = _differences(left, left.predicted, right)
    found: dict[str, list[float]] = {name: [] for name in observed}
    for swaps in _exchanges(len(people), draws, seed):
        rows = swaps[index].reshape(-1, *[1] * (right.ndim - 1))
        one = _differences(left, np.where(rows, right, left.predicted), np.where(rows, left.predicted, right))
        for name, value in one.items():
            found[name].append(value)
    return {name: _p_value(observed[name], values) if len(people) > 1 else None for name, values in found.items()}


def _differences(left: Outcomes, a: NDArray[np.float64], b: NDArray[np.float64]) -> Mapping[str, float]:
    one, other = (task_metrics.evaluate(left.spec.kind, left.truth, part) for part in (a, b))
    return {name: other[name] - one[name] for name in one}


def _exchanges(people: int, draws: int, seed: int) -> list[NDArray[np.bool_]]:
    if 2**people <= draws:
        return [np.array(row) for row in product((False, True), repeat=people)]
    rng = make_rng(seed, "exchanges")
    return [np.zeros(people, dtype=bool), *(rng.random((draws - 1, people)) < 0.5)]


def _p_value(observed: float, found: list[float]) -> float | None:
    values = np.array([value for value in found if math.isfinite(value)])
    if not math.isfinite(observed) or not len(values):
        return None
    return float((np.abs(values) >= abs(observed) - 1e-12).mean())


def compare_any(a: Path, b: Path) -> Comparison | TaskComparison:
    """Compare two evaluations of segmentations, or two fine-tunings for classification or regression.

    Raises:
        UserError: one of either, or results that cannot be compared.
    """
    kinds = [is_task_run(one) for one in (a, b)]
    if all(kinds):
        return compare_runs(a, b)
    if any(kinds):
        other = b if kinds[0] else a
        raise UserError(f"{a if kinds[0] else b} is a fine-tuning with predictions.csv, but {other} is not.")
    return compare(read_evaluation(a), read_evaluation(b), (str(a), str(b)))
