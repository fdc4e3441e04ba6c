"""The page of a paired comparison: a sentence, a table, and each case's score under A against that under B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from viewalign import __version__
from viewalign.evaluation import task_metrics
from viewalign.evaluation.comparison import Comparison, TaskComparison
from viewalign.evaluation.results import MEAN, METRICS
from viewalign.evaluation.statistics import Interval
from viewalign.reports.charts import Chart, dots, figure, padded, reference, scripts
from viewalign.reports.page import render_template, save_page, score
from viewalign.reports.task import WORDS
from viewalign.utils.text import counted

PAGE = "comparison.html"
_NAMES = {"dice": "Dice", "nsd": "NSD"}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A row of the table: one score, of one class or of all.

    Attributes:
        score: name of the score.
        label: the class; "" for a task.
        a, b: values; None for a segmentation, whose rows are means of differences.
        difference: b minus a.
        interval: its 95 % interval; None if there are too few cases.
        p_value: of the permutation test; None if there are too few cases.
        counts: numbers of cases in which B scores higher and lower; None for a task.
        lower: whether lower values are better.
    """

    score: str
    label: str
    a: float | None
    b: float | None
    difference: float
    interval: Interval | None
    p_value: float | None
    counts: tuple[int, int] | None
    lower: bool

    @property
    def better(self) -> bool | None:
        """Whether B is better; None if the interval contains 0 or is unknown."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return None
        return (self.interval[0] > 0) != self.lower

    def value(self) -> str:
        """Return the difference with its interval, such as `+0.021 (95 % interval +0.014 to +0.028)`."""
        if self.interval is None:
            return score(self.difference, "+")
        low, high = (score(end, "+") for end in self.interval)
        return f"{score(self.difference, '+')} (95 % interval {low} to {high})"


def write_page(comparison: Comparison | TaskComparison, folder: Path) -> Path:
    """Write `comparison.html` into a folder and return its path.

    Raises:
        UserError: the page cannot be written.
    """
    return save_page(folder / PAGE, render(comparison))


def render(comparison: Comparison | TaskComparison) -> str:
    """Return the page as HTML: Dice and NSD of segmentations; true-class probability or errors of other tasks."""
    names = (comparison.a, comparison.b) if isinstance(comparison, Comparison) else comparison.names
    short, table = short_names(*names), rows(comparison)
    first = table[0]
    return render_template(
        "comparison.html",
        filters={"score": score},
        a=short[0],
        b=short[1],
        cases=len(comparison.cases),
        left_out=comparison.left_out,
        level={True: "good", False: "bad", None: "watch"}[first.better],
        sentence=sentence(first, short, len(comparison.cases)),
        rows=table,
        segmentation=isinstance(comparison, Comparison),
        errors=isinstance(comparison, TaskComparison) and comparison.kind == "regression",
        charts=charts(comparison, short),
        version=__version__,
        **scripts(),
    )


def short_names(a: str, b: str) -> tuple[str, str]:
    """Return the parts of two paths that differ; their last parts if those are equal or one is empty."""
    parts = [list(PurePath(path).parts) for path in (a, b)]
    while all(len(one) > 1 for one in parts) and parts[0][0] == parts[1][0]:
        parts = [one[1:] for one in parts]
    while all(len(one) > 1 for one in parts) and parts[0][-1] == parts[1][-1]:
        parts = [one[:-1] for one in parts]
    first, second = ("/".join(one) for one in parts)
    return first, second


def rows(comparison: Comparison | TaskComparison) -> list[Row]:
    """Return the table; its first row is the primary score."""
    if isinstance(comparison, Comparison):
        return [
            Row(
                score=_NAMES[metric],
                label="mean over classes" if label == MEAN else label,
                a=None,
                b=None,
                difference=one.mean,
                interval=one.interval,
                p_value=one.p_value,
                counts=(one.better, one.worse),
                lower=False,
            )
            for metric in METRICS
            for label, one in sorted(comparison.differences[metric].items(), key=lambda item: item[0] != MEAN)
            if label != MEAN or len(comparison.differences[metric]) > 2
        ]
    return [
        Row(
            score=WORDS.get(name, name),
            label="",
            a=a,
            b=comparison.b[name],
            difference=comparison.b[name] - a,
            interval=comparison.intervals[name],
            p_value=comparison.p_values[name],
            counts=None,
            lower=name in task_metrics.LOWER_IS_BETTER,
        )
        for name, a in sorted(comparison.a.items(), key=lambda item: item[0] != comparison.primary)
    ]


def sentence(row: Row, names: tuple[str, str], cases: int) -> str:
    """State the result in words, for the primary score."""
    a, b = names
    what = f"mean {row.score}" if row.counts is not None else row.score
    value = f"{what[0].upper()}{what[1:]} {row.value()}, over {counted(cases, 'case')}"
    if row.counts is not None:
        value += f"; B scores higher in {row.counts[0]:,} and lower in {row.counts[1]:,}"
    if row.interval is None:
        return f"There are too few cases to tell whether B ({b}) is better than A ({a}). {value}."
    result = {
        True: f"B ({b}) is better than A ({a}).",
        False: f"B ({b}) is worse than A ({a}).",
        None: f"No difference between A ({a}) and B ({b}) could be shown, which does not show that there is none.",
    }[row.better]
    return f"{result} {value}."


def charts(comparison: Comparison | TaskComparison, names: tuple[str, str]) -> list[Chart]:
    """Draw one scatter plot per score."""
    cases = comparison.cases
    if isinstance(comparison, Comparison):
        return [_paired(_NAMES[metric], cases, comparison.values[metric], "score", 1.0, names) for metric in METRICS]
    regression = comparison.kind == "regression"
    what = "Absolute error" if regression else "Probability of the true class"
    return [_paired(what, cases, comparison.scores, what.lower(), None if regression else 1.0, names)]


def _paired(
    title: str,
    names: Sequence[str],
    scores: tuple[Array, Array],
    what: str,
    most: float | None,
    sides: tuple[str, str],
) -> Chart:
    """Draw B over A; `most` is the highest possible score, or None."""
    both = np.isfinite(scores[0]) & np.isfinite(scores[1])
    a, b = (one[both].tolist() for one in scores)
    low, high = padded([0.0, *a, *b])
    if most is not None:
        low, high = max(0.0, min([1.0, *a, *b]) - 0.05), most + 0.01
    kept = [name for name, finite in zip(names, both, strict=True) if finite]
    texts = [f"{name}: A {x:.3f}, B {y:.3f}" for name, x, y in zip(kept, a, b, strict=True)]
    drawn = figure(
        [reference([low, high], [low, high]), dots(a, b, texts)],
        f"A: {sides[0]} ({what})",
        f"B: {sides[1]} ({what})",
        400,
        xaxis={"range": [low, high]},
        yaxis={"range": [low, high]},
    )
    return Chart(title, "", drawn)
