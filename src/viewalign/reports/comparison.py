"""A paired comparison as a picture: each case's score under A against its score under B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from viewalign.evaluation.comparison import Comparison, TaskComparison
from viewalign.evaluation.results import MEAN, METRICS
from viewalign.reports.curves import Scale, padded, ticks

_SIDE, _LEFT, _TOP, _GAP = 260, 60, 60, 70
_NAMES = {"dice": "Dice", "nsd": "NSD"}


@dataclass(frozen=True)
class Paired:
    """One scatter plot.

    Attributes:
        title: above it.
        a, b: a score of each case.
        most: the highest score that there can be, or None.
        lower: whether less is better.
    """

    title: str
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    most: float | None = 1.0
    lower: bool = False


def draw(comparison: Comparison | TaskComparison) -> str:
    """Return an SVG: Dice and NSD of segmentations, the true answer's probability or the error of other tasks."""
    if isinstance(comparison, Comparison):
        return _draw([_overlap(comparison, metric) for metric in METRICS], (comparison.a, comparison.b))
    return _draw([_answer(comparison)], comparison.names)


def _overlap(comparison: Comparison, metric: str) -> Paired:
    one = comparison.differences[metric][MEAN]  # type: ignore[index]
    title = f"{_NAMES[metric]}: {_told(one.mean, one.interval)}"
    return Paired(title, *comparison.values[metric])  # type: ignore[index]


def _answer(comparison: TaskComparison) -> Paired:
    name = comparison.primary
    told = _told(comparison.b[name] - comparison.a[name], comparison.intervals[name])
    title = f"{name.replace('_', ' ')}: {told}"
    regression = comparison.kind == "regression"
    return Paired(title, *comparison.scores, None if regression else 1.0, regression)


def _told(value: float, ends: tuple[float, float] | None) -> str:
    return f"B − A = {value:+.3f}" + ("" if ends is None else f" ({ends[0]:+.3f} to {ends[1]:+.3f})")


def _draw(panels: Sequence[Paired], names: tuple[str, str]) -> str:
    width = _LEFT + max(2, len(panels)) * (_SIDE + _GAP) - _GAP + 20
    height = _TOP + _SIDE + 60
    drawn = "".join(_panel(one, _LEFT + k * (_SIDE + _GAP)) for k, one in enumerate(panels))
    a, b = escape(names[0]), escape(names[1])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        f'<text x="{_LEFT}" y="18">A: {a}</text><text x="{_LEFT}" y="36">B: {b}</text>{drawn}</svg>\n'
    )


def _panel(one: Paired, left: float) -> str:
    both = np.isfinite(one.a) & np.isfinite(one.b)
    a, b = one.a[both], one.b[both]
    if one.most is not None:
        low, high = max(0.0, float(min(a.min(initial=1.0), b.min(initial=1.0))) - 0.05), one.most
    else:
        low, high = padded([0.0, *a.tolist(), *b.tolist()])
    across = Scale(low, high, left, left + _SIDE)
    up = Scale(low, high, _TOP + _SIDE, _TOP)
    lines = [f'<rect x="{left}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#9ca5af"/>']
    lines.append(f'<path d="M{left} {_TOP + _SIDE}L{left + _SIDE} {_TOP}" stroke="#9ca5af" stroke-dasharray="4 4"/>')
    for value in ticks(low, high):
        lines.append(f'<text x="{across(value):.1f}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{value:g}</text>')
        lines.append(f'<text x="{left - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        colour = "#0b66b0" if (y <= x if one.lower else y >= x) else "#b8500a"
        lines.append(f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.2" fill="{colour}" fill-opacity="0.75"/>')
    lines.append(f'<text x="{left}" y="{_TOP - 8}">{escape(one.title)}</text>')
    axis = "absolute error" if one.lower else "score" if one.most is None else "each case"
    lines.append(f'<text x="{left + _SIDE / 2}" y="{_TOP + _SIDE + 36}" text-anchor="middle">A ({axis})</text>')
    lines.append(f'<text x="{left - 44}" y="{_TOP + _SIDE / 2}">B</text>')
    return "".join(lines)
