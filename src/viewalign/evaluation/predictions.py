"""The table of predictions for the cases of a classification or regression task."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.tasks.manifest import TaskCase, parse_target, target_text
from viewalign.tasks.spec import FILE, TaskSpec, read_spec
from viewalign.utils.io import atomic_write
from viewalign.utils.tables import cell_text, text_of

PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class TaskPredictions:
    """Predictions for cases that were not used for training the predicting network.

    Attributes:
        spec: the task.
        cases, subjects, folds: of each row; the fold is `test` for test cases.
        truth: (N,) classes or values, or (N, K) labels.
        predicted: (N, K) probabilities or (N,) values.
    """

    spec: TaskSpec
    cases: tuple[str, ...]
    subjects: tuple[str, ...]
    folds: tuple[str, ...]
    truth: NDArray[Any]
    predicted: NDArray[np.float64]

    def select(self, rows: Sequence[int]) -> TaskPredictions:
        """Return some rows."""
        cases, subjects, folds = (tuple(part[k] for k in rows) for part in (self.cases, self.subjects, self.folds))
        return TaskPredictions(self.spec, cases, subjects, folds, self.truth[list(rows)], self.predicted[list(rows)])

    def of_folds(self, test: bool) -> TaskPredictions:
        """Return the test cases, or the held-out cases of the folds."""
        return self.select([k for k, fold in enumerate(self.folds) if (fold == "test") == test])

    def case_scores(self) -> NDArray[np.float64]:
        """Return the probability of the true class or labels, or the absolute error, of each case (N,)."""
        if self.spec.kind == "regression":
            scores = np.abs(self.predicted - self.truth)
        elif self.spec.kind == "multilabel":
            scores = np.where(self.truth == 1, self.predicted, 1 - self.predicted).mean(1)
        else:
            scores = self.predicted[np.arange(len(self.truth)), self.truth.astype(np.int64)]
        return np.asarray(scores, dtype=np.float64)


def prediction_columns(spec: TaskSpec) -> list[str]:
    """Return the names of a prediction's values: `value`, or `p_<class>` for each class."""
    return ["value"] if spec.kind == "regression" else [f"p_{name}" for name in spec.classes]


def is_task_run(folder: Path) -> bool:
    """Return whether a folder is that of a fine-tuning for classification or regression."""
    return (folder / FILE).is_file() and (folder / PREDICTIONS).is_file()


_FIRST_COLUMNS = ("case", "subject", "fold", "target")


def is_prediction_table(file: Path) -> bool:
    """Return whether a file is a table of predictions, but not that of a fine-tuning."""
    with file.open(encoding="utf-8") as stream:
        return stream.readline().startswith(",".join(_FIRST_COLUMNS)) and not is_task_run(file.parent)


def write_predictions(
    file: Path, cases: Sequence[TaskCase], rows: Mapping[str, tuple[str, NDArray[np.float64]]], spec: TaskSpec
) -> None:
    """Write one row per case: name, subject, fold, target, and probabilities or value in full precision.

    Args:
        file: the CSV file.
        cases: in order of the rows; cases without a prediction are omitted.
        rows: fold and prediction (K,) or (1,) by case name.
        spec: the task.
    """
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*_FIRST_COLUMNS, *prediction_columns(spec)])
        for case in cases:
            if case.case in rows:
                fold, predicted = rows[case.case]
                values = [repr(float(value)) for value in predicted]
                named = (case.case, case.subject, fold, target_text(case.target, spec))
                writer.writerow([*map(cell_text, named), *values])


def read_predictions(folder: Path) -> TaskPredictions:
    """Read the predictions of a fine-tuning.

    Raises:
        UserError: there are none, or the table is damaged.
    """
    spec, file = read_spec(folder), folder / PREDICTIONS
    if not file.is_file():
        raise UserError(f"{folder} has no {PREDICTIONS}.")
    columns = prediction_columns(spec)
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            pairs = [(parse_target(text_of(row["target"]), spec), row) for row in csv.DictReader(stream)]
        rows = [row for target, row in pairs if target is not None]
        truth = np.array([target for target, _ in pairs if target is not None])
        predicted = np.array([[float(row[name]) for name in columns] for row in rows])
        names, subjects, folds = (tuple(text_of(row[key]) for row in rows) for key in ("case", "subject", "fold"))
    except (KeyError, TypeError, ValueError) as problem:
        raise UserError(f"{file} is not a table of predictions of this task: {problem}.") from None
    if not rows:
        raise UserError(f"{file} has no case with a target.")
    if spec.kind == "regression":
        predicted = predicted[:, 0]
    return TaskPredictions(spec, names, subjects, folds, truth, predicted)
