"""The page of a paired comparison: each case's score under A against its score under B."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign import __version__
from viewalign.evaluation.comparison import Comparison, TaskComparison
from viewalign.evaluation.results import MEAN, METRICS
from viewalign.reports.charts import Chart, dots, figure, padded, reference, scripts
from viewalign.reports.page import render_template, save_page

PAGE = "comparison.html"
_NAMES = {"dice": "Dice", "nsd": "NSD"}
Array = NDArray[np.float64]


def write_page(comparison: Comparison | TaskComparison, folder: Path) -> Path:
    """Write `comparison.html` into a folder and return its path.

    Raises:
        UserError: the page cannot be written.
    """
    return save_page(folder / PAGE, render(comparison))


def render(comparison: Comparison | TaskComparison) -> str:
    """Return the page as HTML: Dice and NSD of segmentations; true-class probability or errors of other tasks."""
    a, b = (comparison.a, comparison.b) if isinstance(comparison, Comparison) else comparison.names
    return render_template(
        "comparison.html",
        a=a,
        b=b,
        cases=len(comparison.cases),
        table=comparison.table(),
        errors=isinstance(comparison, TaskComparison) and comparison.kind == "regression",
        charts=charts(comparison),
        version=__version__,
        **scripts(),
    )


def charts(comparison: Comparison | TaskComparison) -> list[Chart]:
    """Draw one scatter plot per score."""
    names = comparison.cases
    if isinstance(comparison, Comparison):
        return [
            _paired(
                f"{_NAMES[metric]}: {_difference(one.mean, one.interval)}",
                names,
                comparison.values[metric],
                "score",
                1.0,
            )
            for metric in METRICS
            for one in [comparison.differences[metric][MEAN]]
        ]
    name = comparison.primary
    difference = _difference(comparison.b[name] - comparison.a[name], comparison.intervals[name])
    regression = comparison.kind == "regression"
    what = "absolute error" if regression else "probability of the true class"
    title = f"{name.replace('_', ' ')}: {difference}"
    return [_paired(title, names, comparison.scores, what, None if regression else 1.0)]


def _difference(value: float, ends: tuple[float, float] | None) -> str:
    return f"B − A = {value:+.3f}" + ("" if ends is None else f" ({ends[0]:+.3f} to {ends[1]:+.3f})")


def _paired(title: str, names: Sequence[str], scores: tuple[Array, Array], what: str, most: float | None) -> Chart:
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
        f"A ({what})",
        f"B ({what})",
        400,
        xaxis={"range": [low, high]},
        yaxis={"range": [low, high]},
    )
    return Chart(title, "", drawn)
