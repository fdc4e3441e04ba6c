"""Two sets of predictions of the same cases: which is better, by how much, and how sure that is."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.errors import UserError
from viewalign.transfer.tasks import metrics
from viewalign.transfer.tasks.manifest import parse_target
from viewalign.transfer.tasks.models import prediction_columns
from viewalign.transfer.tasks.spec import TaskSpec, read_spec


@dataclass(frozen=True)
class TaskComparison:
    """Run b against run a, on the cases of both.

    Attributes:
        a, b: figures of each.
        intervals: 95 % intervals of b minus a, over the same resampled subjects.
        cases: how many were compared.
    """

    a: dict[str, float]
    b: dict[str, float]
    intervals: dict[str, metrics.Interval | None]
    cases: int

    def table(self) -> str:
        """Return a table for a terminal."""
        lines = [f"{self.cases} cases of both; b - a with its 95 % interval over subjects"]
        for name in self.a:
            ends = self.intervals[name]
            told = "" if ends is None else f"  ({ends[0]:+.3f} to {ends[1]:+.3f})"
            lines.append(
                f"  {name:<18} {self.a[name]:8.3f} {self.b[name]:8.3f}  {self.b[name] - self.a[name]:+.3f}{told}"
            )
        return "\n".join(lines)


def compare_runs(a: Path, b: Path, draws: int = 1000, seed: int = 0) -> TaskComparison:
    """Compare two fine-tunings by their `predictions.csv`.

    Raises:
        UserError: other tasks, other targets, or no case in common.
    """
    spec = read_spec(a)
    if read_spec(b) != spec:
        raise UserError(f"{a} and {b} are of different tasks.")
    first, second = _rows(a, spec), _rows(b, spec)
    shared = sorted(set(first) & set(second))
    if not shared:
        raise UserError(f"{a} and {b} have no case in common.")
    odd = [name for name in shared if first[name][:2] != second[name][:2]]
    if odd:
        raise UserError(f"{a} and {b} differ in subject or target of {odd[0]}.")
    truth = np.array([first[name][1] for name in shared])
    left, right = (_matrix([rows[name][2] for name in shared], spec) for rows in (first, second))
    subjects = [first[name][0] for name in shared]
    ends = metrics.difference_intervals(spec.kind, truth, left, right, subjects, draws, seed)
    scores = [metrics.evaluate(spec.kind, truth, one) for one in (left, right)]
    return TaskComparison(scores[0], scores[1], ends, len(shared))


def _rows(folder: Path, spec: TaskSpec) -> dict[str, tuple[str, Any, list[float]]]:
    file = folder / "predictions.csv"
    if not file.is_file():
        raise UserError(f"{folder} holds no predictions.csv.")
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = prediction_columns(spec)
    return {
        row["case"]: (row["subject"], parse_target(row["target"], spec), [float(row[name]) for name in columns])
        for row in rows
    }


def _matrix(rows: Sequence[Sequence[float]], spec: TaskSpec) -> np.ndarray:
    matrix = np.array(rows, dtype=np.float64)
    return matrix[:, 0] if spec.kind == "regression" else matrix
