"""What a fine-tuning predicted, read back from its folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.finetuning.classification.models import prediction_columns
from viewalign.tasks.manifest import parse_target
from viewalign.tasks.spec import FILE, TaskSpec, read_spec

PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class Outcomes:
    """Predictions of cases that the predicting network had not seen.

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

    def select(self, rows: Sequence[int]) -> Outcomes:
        """Return some rows."""
        cases, subjects, folds = (tuple(part[k] for k in rows) for part in (self.cases, self.subjects, self.folds))
        return Outcomes(self.spec, cases, subjects, folds, self.truth[list(rows)], self.predicted[list(rows)])

    def of_folds(self, test: bool) -> Outcomes:
        """Return the test cases, or those held out by folds."""
        return self.select([k for k, fold in enumerate(self.folds) if (fold == "test") == test])

    def case_scores(self) -> NDArray[np.float64]:
        """Return how good each case's answer is: the probability of what is true, or the absolute error."""
        if self.spec.kind == "regression":
            scores = np.abs(self.predicted - self.truth)
        elif self.spec.kind == "multilabel":
            scores = np.where(self.truth == 1, self.predicted, 1 - self.predicted).mean(1)
        else:
            scores = self.predicted[np.arange(len(self.truth)), self.truth.astype(np.int64)]
        return np.asarray(scores, dtype=np.float64)


def is_task_run(folder: Path) -> bool:
    """Tell whether a folder is that of a fine-tuning for one answer a case."""
    return (folder / FILE).is_file() and (folder / PREDICTIONS).is_file()


def read_outcomes(folder: Path) -> Outcomes:
    """Read the predictions of a fine-tuning.

    Raises:
        UserError: there are none, or the table is damaged.
    """
    spec, file = read_spec(folder), folder / PREDICTIONS
    if not file.is_file():
        raise UserError(f"{folder} holds no {PREDICTIONS}.")
    columns = prediction_columns(spec)
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            read = [(parse_target(row["target"], spec), row) for row in csv.DictReader(stream)]
        rows = [row for target, row in read if target is not None]
        truth = np.array([target for target, _ in read if target is not None])
        predicted = np.array([[float(row[name]) for name in columns] for row in rows])
        names, subjects, folds = (tuple(row[key] for row in rows) for key in ("case", "subject", "fold"))
    except (KeyError, TypeError, ValueError) as problem:
        raise UserError(f"{file} is no table of predictions of this task: {problem}.") from None
    if not rows:
        raise UserError(f"{file} holds no case with a target.")
    return Outcomes(spec, names, subjects, folds, truth, predicted[:, 0] if spec.kind == "regression" else predicted)
