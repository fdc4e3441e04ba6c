"""A paired comparison as a picture: each case's score under A against its score under B."""

from __future__ import annotations

from html import escape

import numpy as np

from viewalign.report.axes import Scale, ticks
from viewalign.transfer.evaluation.comparing import Comparison
from viewalign.transfer.evaluation.results import MEAN, METRICS, Metric

_SIDE, _LEFT, _TOP, _GAP = 260, 60, 60, 70
_NAMES = {"dice": "Dice", "nsd": "NSD"}


def draw(comparison: Comparison) -> str:
    """Return an SVG with a scatter plot for Dice and one for NSD; points above the diagonal are better under B."""
    width = _LEFT + 2 * _SIDE + _GAP + 20
    height = _TOP + _SIDE + 60
    parts = [_panel(comparison, metric, _LEFT + k * (_SIDE + _GAP)) for k, metric in enumerate(METRICS)]
    a, b = escape(comparison.a), escape(comparison.b)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        f'<text x="{_LEFT}" y="18">A: {a}</text><text x="{_LEFT}" y="36">B: {b}</text>{"".join(parts)}</svg>\n'
    )


def _panel(comparison: Comparison, metric: Metric, left: float) -> str:
    a, b = comparison.values[metric]
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    low = float(min(a.min(initial=1.0), b.min(initial=1.0)))
    low, high = max(0.0, low - 0.05), 1.0
    across = Scale(low, high, left, left + _SIDE)
    up = Scale(low, high, _TOP + _SIDE, _TOP)
    lines = [f'<rect x="{left}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#9ca5af"/>']
    lines.append(f'<path d="M{left} {_TOP + _SIDE}L{left + _SIDE} {_TOP}" stroke="#9ca5af" stroke-dasharray="4 4"/>')
    for value in ticks(low, high):
        lines.append(f'<text x="{across(value):.1f}" y="{_TOP + _SIDE + 16}" text-anchor="middle">{value:g}</text>')
        lines.append(f'<text x="{left - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        colour = "#0b66b0" if y >= x else "#b8500a"
        lines.append(f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.2" fill="{colour}" fill-opacity="0.75"/>')
    one = comparison.differences[metric][MEAN]
    ends = "" if one.interval is None else f" ({one.interval[0]:+.3f} to {one.interval[1]:+.3f})"
    lines.append(f'<text x="{left}" y="{_TOP - 8}">{_NAMES[metric]}: B − A = {one.mean:+.3f}{ends}</text>')
    lines.append(f'<text x="{left + _SIDE / 2}" y="{_TOP + _SIDE + 36}" text-anchor="middle">A</text>')
    lines.append(f'<text x="{left - 44}" y="{_TOP + _SIDE / 2}">B</text>')
    return "".join(lines)
