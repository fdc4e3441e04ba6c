"""Curves over the steps of a run, as SVG that stands in the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from viewalign.report.axes import Scale, Thinned, padded, thin, ticks
from viewalign.report.read import RunRecord, Series, setting
from viewalign.report.wording import number
from viewalign.training.health import MEASURES

WIDTH, HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 38

_OTHERS = {"lr", "gradient_norm", "samples_per_second", "data_wait"} | {measure.name for measure in MEASURES}
_TERMS = {
    "loss": ("Total loss", "Sum of the terms below, each times its weight."),
    "reconstruction": ("Reconstruction", "Huber distance to the hidden voxels, in deviations of the normalised image."),
    "consistency": ("Consistency", "2 − 2·cosine at the same places of two views: 0 is equal, 2 is unrelated."),
    "contrastive": ("Contrast", "NT-Xent of whole images against those of other subjects, in nats."),
}


@dataclass(frozen=True)
class Chart:
    """A chart and its words.

    Attributes:
        title: what it shows.
        caption: what that is, and in which unit.
        svg: the drawing.
        validation: whether it has a held-out curve.
    """

    title: str
    caption: str
    svg: Markup
    validation: bool


def loss_charts(run: RunRecord) -> list[Chart]:
    """Draw the total loss, its terms, the learning rate and the gradient's norm, as far as the run has them."""
    names = [name for name in run.keys("train") if name not in _OTHERS]
    names = sorted(names, key=lambda name: name != "loss")
    charts = [_term(run, name) for name in names]
    rate = _single(run, "lr", "Learning rate", "Set by warm-up and decay.")
    norm = _single(run, "gradient_norm", "Gradient norm", _clipping(run))
    return [chart for chart in (*charts[:1], *_probes(run), rate, *charts[1:], norm) if chart is not None]


def _probes(run: RunRecord) -> list[Chart | None]:
    """Draw what a probe told along the way, from the untrained network on."""
    names = [name for name in run.keys("probe") if not name.endswith(("_low", "_high"))]
    charts = []
    for name in names:
        words = name.replace("_", " ")
        low, high = (run.series("probe", f"{name}_{end}").finite() for end in ("low", "high"))
        ends = f"; at the end 95 % over subjects {number(low.last)} to {number(high.last)}" if len(low) else ""
        caption = f"Frozen features and a linear learner on labelled cases{ends}. Step 0 is the network as it began."
        lines = {"probe": run.series("probe", name)}
        svg = line_chart(f"Probe: {words}", f"{words} (no unit)", lines)
        charts.append(None if svg is None else Chart(f"Probe: {words}", caption, svg, False))
    return charts


_WEIGHTED = ("cva", "mae", "simmim", "spark")
"""Methods that weight their reconstruction by a setting."""


def _clipping(run: RunRecord) -> str:
    clip = setting(run.config, "optim.clip")
    return "Before clipping" + (f"; longer gradients are cut to {number(float(clip))}." if clip else "; none is set.")


def _term(run: RunRecord, name: str) -> Chart | None:
    title, caption = _TERMS.get(name, (name.replace("_", " ").capitalize(), ""))
    weight = setting(run.config, f"objectives.{name}_weight")
    weighted = {"reconstruction": _WEIGHTED, "consistency": ("cva",), "contrastive": ("cva",)}.get(name, ())
    if isinstance(weight, int | float) and setting(run.config, "method", "cva") in weighted:
        caption = f"{caption} Weight {number(float(weight))}.".strip()
    lines = {"training": run.series("train", name), "held out": run.series("validation", name)}
    svg = line_chart(title, "loss (nats)" if name == "contrastive" else "loss (no unit)", lines)
    return None if svg is None else Chart(title, caption, svg, len(lines["held out"].finite()) > 0)


def _single(run: RunRecord, name: str, title: str, caption: str) -> Chart | None:
    svg = line_chart(title, f"{title.lower()} (no unit)", {"training": run.series("train", name)})
    return None if svg is None else Chart(title, caption, svg, False)


def line_chart(title: str, unit: str, lines: dict[str, Series]) -> Markup | None:
    """Draw one or two lines; the first is solid, the second dashed with dots. None without finite values."""
    thinned = {name: thin(series.finite()) for name, series in lines.items() if len(series.finite())}
    if not thinned:
        return None
    every = [v for line in thinned.values() for v in (*line.lows, *line.highs)]
    steps = [s for line in thinned.values() for s in line.steps]
    x = Scale(0, max(*steps, 1), _LEFT, WIDTH - _RIGHT)
    low, high = padded(every)
    y = Scale(low, high, HEIGHT - _BOTTOM, _TOP)
    drawn = [_line(kind, line, x, y) for kind, line in zip(_kinds(thinned), thinned.values(), strict=True)]
    parts = [_frame(x, y, unit), *drawn, Markup('<line class="cursor" y1="{}" y2="{}"/>').format(_TOP, y.start)]
    return _svg(title, _summary(thinned), Markup("").join(parts), _hover(thinned, x))


def _kinds(lines: dict[str, Thinned]) -> list[str]:
    return ["validation" if name == "held out" else "train" for name in lines]


def _svg(title: str, summary: str, inside: Markup, hover: str) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}. {}" data-hover="{}"><desc>{}</desc>{}</svg>'
    ).format(WIDTH, HEIGHT, title, summary, hover, summary, inside)


def _summary(lines: dict[str, Thinned]) -> str:
    return " ".join(
        f"{name.capitalize()}: from {number(line.means[0])} at step {line.steps[0]:,.0f} "
        f"to {number(line.means[-1])} at step {line.steps[-1]:,.0f}."
        for name, line in lines.items()
    )


def _hover(lines: dict[str, Thinned], x: Scale) -> str:
    """Return what the page's script needs to tell the values under the pointer."""
    shown = [
        {"name": name, "s": [round(s) for s in line.steps], "v": [number(v) for v in line.means]}
        for name, line in lines.items()
    ]
    return json.dumps({"x": [x.start, x.stop, x.low, x.high], "lines": shown}, separators=(",", ":"))


def _frame(x: Scale, y: Scale, unit: str) -> Markup:
    """Draw grid, tick labels and axis titles."""
    rows = [
        Markup(
            '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="tick" x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
        ).format(x.start, x.stop, y(value), x.start - 6, y(value) + 4, number(value))
        for value in ticks(y.low, y.high)
    ]
    columns = [
        Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{:,.0f}</text>').format(
            x(value), y.start + 15, "end" if x(value) > x.stop - 12 else "middle", value
        )
        for value in ticks(x.low, x.high, 5)
    ]
    axes = Markup(
        '<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
        '<text class="label" x="{3}" y="{4}" text-anchor="middle">step</text>'
        '<text class="label" transform="translate(11 {5}) rotate(-90)" text-anchor="middle">{6}</text>'
    ).format(x.start, x.stop, y.start, (x.start + x.stop) / 2, HEIGHT - 5, (y.start + y.stop) / 2, unit)
    return Markup("").join([*rows, *columns, axes])


def _line(kind: str, line: Thinned, x: Scale, y: Scale) -> Markup:
    """Draw a line, the range around it where steps were joined, and dots where there are few values."""
    parts = []
    if line.stretch > 1:
        around = [*zip(line.steps, line.highs, strict=True), *reversed([*zip(line.steps, line.lows, strict=True)])]
        parts.append(Markup('<path class="range {}" d="{}Z"/>').format(kind, path(around, x, y)))
    points = [*zip(line.steps, line.means, strict=True)]
    parts.append(Markup('<path class="line {}" d="{}"/>').format(kind, path(points, x, y)))
    if len(points) == 1 or (kind == "validation" and len(points) <= 40):
        parts += [dot(kind, x(s), y(v)) for s, v in points]
    return Markup("").join(parts)


def path(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    """Return the path through points (step, value)."""
    return "M" + "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in points)


def dot(kind: str, x: float, y: float, radius: float = 3) -> Markup:
    """Draw a dot."""
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(kind, x, y, radius)
