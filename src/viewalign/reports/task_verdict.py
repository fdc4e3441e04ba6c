"""The verdict on a fine-tuned task: its primary metric against predictions that ignore the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from viewalign.evaluation import task_metrics
from viewalign.evaluation.predictions import TaskPredictions
from viewalign.reports.page import number, score

_DRAWS = 200
_CONSTANT = {"auroc", "balanced_accuracy"}
"""Metrics that are the same for every constant prediction."""
_NARROW = 0.1
"""Spread of predictions over that of the targets below which they count as one value."""


@dataclass(frozen=True)
class Verdict:
    """A sentence and its level.

    Attributes:
        level: good, watch or bad.
        sentence: the result, and what to look for if it is not good.
        baseline: what the baseline predicts, in words.
        values: metrics of the baseline.
    """

    level: str
    sentence: str
    baseline: str
    values: dict[str, float]


def baseline_predictions(outcomes: TaskPredictions) -> NDArray[np.float64]:
    """Return the same prediction for every case: the mean target, or the frequency of each class or label."""
    truth = outcomes.truth
    if outcomes.spec.kind == "regression":
        return np.full(len(truth), float(truth.mean()))
    if outcomes.spec.kind == "multilabel":
        return np.tile(truth.mean(axis=0), (len(truth), 1)).astype(np.float64)
    shares = np.bincount(truth.astype(np.int64), minlength=len(outcomes.spec.classes)) / len(truth)
    return np.tile(shares, (len(truth), 1))


def assess(outcomes: TaskPredictions, words: str, interval: Sequence[float] | None = None) -> Verdict | None:
    """Compare the primary metric with the baseline's on the same cases; None without cases or a defined metric.

    Args:
        outcomes: evaluated cases.
        words: name of the primary metric.
        interval: its 95 % interval over subjects, if it is known.
    """
    spec = outcomes.spec
    if not outcomes.cases:
        return None
    constant = baseline_predictions(outcomes)
    values = task_metrics.evaluate(spec.kind, outcomes.truth, constant)
    own = task_metrics.evaluate(spec.kind, outcomes.truth, outcomes.predicted)
    value, other = own[spec.figure], values[spec.figure]
    name = _baseline_name(outcomes)
    if not (math.isfinite(value) and math.isfinite(other)):
        return None
    if interval is not None and spec.figure in _CONSTANT:  # the baseline is the same in every bootstrap sample
        ends: tuple[float, float] | None = (interval[0] - other, interval[1] - other)
    else:
        ends = task_metrics.difference_intervals(
            spec.kind, outcomes.truth, constant, outcomes.predicted, outcomes.subjects, _DRAWS
        )[spec.figure]
    sign = -1.0 if spec.figure in task_metrics.LOWER_IS_BETTER else 1.0
    low, high = (-math.inf, math.inf) if ends is None else sorted((sign * ends[0], sign * ends[1]))
    compared = f"{words} {score(value)} instead of {score(other)}"
    if ends is not None:
        difference, first, last = (score(one, "+") for one in (value - other, *ends))
        compared += f" (difference {difference}, 95 % interval {first} to {last})"
    compared += "."
    if low > 0:
        level, start = "good", f"Better than {name}: {compared}"
    elif high < 0:
        level, start = "bad", f"Worse than {name}: {compared}{_inverted(spec.figure, value)}"
    else:
        reason = "" if ends is not None else " There are too few subjects for an interval."
        level, start = "watch", f"Not shown to be better than {name}: {compared}{reason}"
    return Verdict(level, f"{start}{_one_value(outcomes)}", name, values)


def _baseline_name(outcomes: TaskPredictions) -> str:
    spec = outcomes.spec
    if spec.kind == "regression":
        unit = f" {spec.unit}" if spec.unit else ""
        return f"predicting the mean for every case ({number(float(outcomes.truth.mean()))}{unit})"
    if spec.kind == "multilabel":
        return "predicting the frequency of each label for every case"
    counts = np.bincount(outcomes.truth.astype(np.int64), minlength=len(spec.classes))
    share = counts.max() / counts.sum()
    return f"predicting the majority class for every case ({spec.classes[int(counts.argmax())]}, {share:.0%})"


def _inverted(figure: str, value: float) -> str:
    if figure != "auroc" or value >= 0.5:
        return ""
    return " Higher scores go with the other class: check the order of the classes, and for few cases chance."


def _one_value(outcomes: TaskPredictions) -> str:
    """Say so if the predictions hardly differ between cases."""
    if len(outcomes.cases) < 2:
        return ""
    if outcomes.spec.kind == "regression":
        spread, wanted = float(np.std(outcomes.predicted)), float(np.std(outcomes.truth))
        if wanted > 0 and spread < _NARROW * wanted:
            middle = number(float(np.median(outcomes.predicted)))
            return f" All predictions are close to {middle} {outcomes.spec.unit}".rstrip() + "."
        return ""
    chosen = set(outcomes.predicted.argmax(1).tolist()) if outcomes.spec.kind != "multilabel" else {0, 1}
    return f" Every case is predicted as {outcomes.spec.classes[chosen.pop()]}." if len(chosen) == 1 else ""
