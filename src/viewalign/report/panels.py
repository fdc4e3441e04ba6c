"""The little curves of the health panel, with the limits drawn as bands."""

from __future__ import annotations

from markupsafe import Markup

from viewalign.report.axes import Scale, thin
from viewalign.report.curves import dot, path
from viewalign.report.read import Series
from viewalign.report.verdicts import Finding
from viewalign.report.wording import number, percent
from viewalign.training.health import Measure

WIDTH, HEIGHT = 320, 112
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 44, 6, 18
_LOGARITHMIC = {"effective_rank", "alignment_error"}
_THINNEST = 11.0
"""Bands lower than this many pixels carry no word."""


def band_curve(finding: Finding) -> Markup | None:
    """Draw a finding's values over its bands; None where there is nothing to draw."""
    measure, series = finding.measure, finding.series.finite()
    if measure is None or not len(series):
        return None
    y = _scale(measure, series)
    line = thin(series, 120)
    x = Scale(min(line.steps[0], 0), max(line.steps[-1], 1), _LEFT, WIDTH - _RIGHT)
    points = [*zip(line.steps, line.means, strict=True)]
    if len(points) == 1:
        middle = (x.start + x.stop) / 2
        curve = dot("train", middle, y(points[0][1]), 4)
    else:
        s, v = series.steps[-1], series.last
        curve = Markup('<path class="line train" d="{}"/>{}').format(path(points, x, y), dot("train", x(s), y(v)))
    share = measure.name == "data_wait"
    summary = (
        f"{finding.title}: {finding.value} at step {series.steps[-1]:,}, {finding.level}; "
        f"lowest {_write(min(series.values), share)}, highest {_write(max(series.values), share)}."
    )
    return Markup('<svg class="bands" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>').format(
        WIDTH, HEIGHT, summary, _bands(measure, y, share), curve, _steps(x, len(points))
    )


def _write(value: float, share: bool) -> str:
    return percent(value) if share else number(value)


def _scale(measure: Measure, series: Series) -> Scale:
    values = [*series.values, measure.good, measure.bad]
    if measure.name in _LOGARITHMIC and min(values) > 0:
        return Scale(min(values) / 2.5, max(values) * 2, HEIGHT - _BOTTOM, _TOP, logarithmic=True)
    top = max(*series.values, 1.6 * max(measure.good, measure.bad))
    return Scale(min(*series.values, 0.0), min(top * 1.05, 1.0) if top <= 1 else top * 1.05, HEIGHT - _BOTTOM, _TOP)


def _bands(measure: Measure, y: Scale, share: bool) -> Markup:
    """Draw three bands, named at the right; the two limits stand at the left."""
    lower, upper = sorted((measure.good, measure.bad))
    names = ("bad", "watch", "good") if measure.good >= measure.bad else ("good", "watch", "bad")
    edges = [y.low, lower, upper, y.high]
    parts = []
    for name, low, high in zip(names, edges, edges[1:], strict=False):
        top, height = y(high), max(y(low) - y(high), 0.0)
        parts.append(
            Markup('<rect class="band {}" x="{}" y="{:.1f}" width="{}" height="{:.1f}"/>').format(
                name, _LEFT, top, WIDTH - _LEFT - _RIGHT, height
            )
        )
        if height >= _THINNEST:
            parts.append(
                Markup('<text class="tick" x="{}" y="{:.1f}">{}</text>').format(
                    WIDTH - _RIGHT + 5, top + height / 2 + 3.5, name
                )
            )
    apart = abs(y(lower) - y(upper)) >= _THINNEST
    limits = [
        Markup(
            '<line class="limit" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="tick" x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
        ).format(_LEFT, WIDTH - _RIGHT, y(value), _LEFT - 5, y(value) + 3.5, _write(value, share))
        for value in ((lower, upper) if apart else (measure.good,))
    ]
    return Markup("").join([*parts, *limits])


def _steps(x: Scale, points: int) -> Markup:
    if points == 1:
        return Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">measured once</text>').format(
            (x.start + x.stop) / 2, HEIGHT - 5
        )
    return Markup(
        '<text class="tick" x="{}" y="{y}">{:,.0f}</text><text class="tick" x="{}" y="{y}" text-anchor="end">'
        "step {:,.0f}</text>"
    ).format(x.start, x.low, x.stop, x.high, y=HEIGHT - 5)
