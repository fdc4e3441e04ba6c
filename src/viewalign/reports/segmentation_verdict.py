"""The verdict on a fine-tuned segmentation: its scores in a sentence, and what is conspicuous in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from viewalign.evaluation.results import MEAN, Evaluation
from viewalign.reports.page import score
from viewalign.reports.segmentation_charts import Curve
from viewalign.utils.text import counted

_ZERO = 0.01
"""Dice below which a class counts as not found."""
_OUTLIER, _FEWEST = 3.0, 8
"""An outlier is this many interquartile ranges below the first quartile of at least this many cases."""
_RISE, _SHORTEST = 0.01, 10
"""Rise of the pseudo Dice over the last fifth of at least this many epochs that counts as still rising."""
_SHOWN = 5


@dataclass(frozen=True)
class Verdict:
    """A sentence and its level.

    Attributes:
        level: good, watch or bad.
        sentence: the scores, and that nothing is conspicuous if so.
        findings: what is conspicuous, as sentences.
    """

    level: str
    sentence: str
    findings: tuple[str, ...]


def assess(evaluations: Mapping[str, Evaluation], dice: Mapping[str, Curve]) -> Verdict | None:
    """Summarise the evaluated splits; None if no case has a score.

    Whether a score suffices depends on the use, so that only relative statements are made.

    Args:
        evaluations: by the name of their split.
        dice: pseudo Dice over epochs, by the name of their split.
    """
    summaries = {name: one.summary("dice") for name, one in evaluations.items()}
    summaries = {name: one for name, one in summaries.items() if math.isfinite(one.mean)}
    if not summaries:
        return None
    means = [one.mean for one in summaries.values()]
    first = next(iter(summaries.values()))
    cases = counted(sum(one.cases for one in summaries.values()), "case")
    if len(means) > 1:
        sentence = f"Mean Dice {score(min(means))} to {score(max(means))} in {len(means)} splits with {cases} in total."
    elif first.interval is None:
        sentence = f"Mean Dice {score(first.mean)} over {cases}: too few for an interval."
    else:
        low, high = first.interval
        sentence = f"Mean Dice {score(first.mean)} over {cases} (95 % interval {score(low)} to {score(high)})."
    missed, worst = _not_found(evaluations)
    findings = [*missed, *_outliers(evaluations), *_without(evaluations), *_rising(dice)]
    level = "bad" if worst else "watch" if findings or first.interval is None else "good"
    if level == "good":
        sentence += " No class and no case is conspicuously worse than the others."
    return Verdict(level, sentence, tuple(findings))


def _not_found(evaluations: Mapping[str, Evaluation]) -> tuple[list[str], bool]:
    """Describe classes that were missed, or found where they are absent; return whether one is missed in most cases."""
    found, usual = [], False
    for label in dict.fromkeys(label for one in evaluations.values() for label in one.rules.classes):
        scores = {
            f"{case.name} ({split})": case.classes[label]
            for split, one in evaluations.items()
            for case in one.cases
            if label in case.classes
        }
        present = [name for name, one in scores.items() if one.reference_voxels]
        missed = [name for name in present if scores[name].dice < _ZERO]
        made_up = [name for name, one in scores.items() if one.prediction_voxels and not one.reference_voxels]
        if missed:
            usual = usual or 2 * len(missed) >= len(present)
            share = f"{len(missed)} of {counted(len(present), 'case')} that have it"
            found.append(f"{label} was missed in {share}: {_listed(missed)}.")
        if made_up:
            found.append(f"{label} was found where it is absent: {_listed(made_up)}.")
    return found, usual


def _outliers(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Name cases far below the others of their split, by the mean over classes."""
    found = []
    for split, one in evaluations.items():
        values = one.values("dice", MEAN)
        names = [case.name for case, value in zip(one.cases, values, strict=True) if math.isfinite(value)]
        values = values[np.isfinite(values)]
        if len(values) < _FEWEST:
            continue
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        far = [k for k in np.argsort(values) if values[k] < low - _OUTLIER * (high - low)]
        if far:
            named = _listed([f"{names[k]} ({score(float(values[k]))})" for k in far])
            found.append(f"Far below the median of {score(float(middle))} ({split}): {named}. See the pictures.")
    return found


def _without(evaluations: Mapping[str, Evaluation]) -> list[str]:
    missing = [name for one in evaluations.values() for name in (*one.missing, *(one.excluded or {}))]
    return [f"Without a score, and in no mean: {_listed(missing)}."] if missing else []


def _rising(curves: Mapping[str, Curve]) -> list[str]:
    """State that the pseudo Dice still rose at the end of training, compared with the fifth of the epochs before."""
    rises = []
    for curve in curves.values():
        values = [value for _, value in sorted(curve.items())]
        part = len(values) // 5
        if len(values) >= _SHORTEST:
            rises.append(float(np.mean(values[-part:]) - np.mean(values[-2 * part : -part])))
    if not rises or min(rises) < _RISE:
        return []
    return [
        f"The pseudo Dice still rose by {score(min(rises))} over the last fifth of the epochs: longer training "
        "(epochs=) may help."
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
