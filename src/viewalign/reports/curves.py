"""Scales and ticks of the page's charts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from viewalign.methods.health import MEASURES, Measure
from viewalign.reports.page import number, percent
from viewalign.reports.run_data import RunRecord, Series, setting
from viewalign.reports.verdicts import Finding


@dataclass(frozen=True)
class Scale:
    """A map from values [low, high] to pixels [start, stop], linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; values past the ends stay at them."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.start + (self.stop - self.start) * (at - low) / (high - low)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers in [low, high], about `count` of them, 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / max(count, 1)
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return the range of values with some room at either end; zero stays the floor where it is near."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 1.0
    floor = low - room
    return (0.0 if floor < 0 <= low or 0 < low < 0.35 * high else floor), high + room


@dataclass(frozen=True)
class Thinned:
    """A series in few enough points to draw: the mean, lowest and highest value of each stretch of steps."""

    steps: tuple[float, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    stretch: int


def thin(series: Series, most: int = 240) -> Thinned:
    """Join neighbouring values until at most `most` are left; values must be finite."""
    stretch = max(1, math.ceil(len(series) / most))
    parts = [slice(k, k + stretch) for k in range(0, len(series), stretch)]
    values = [series.values[part] for part in parts]
    steps = [series.steps[part] for part in parts]
    return Thinned(
        tuple(sum(part) / len(part) for part in steps),
        tuple(sum(part) / len(part) for part in values),
        tuple(min(part) for part in values),
        tuple(max(part) for part in values),
        stretch,
    )


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


PANEL_WIDTH, PANEL_HEIGHT = 320, 112
_PANEL_LEFT, _PANEL_RIGHT, _PANEL_TOP, _PANEL_BOTTOM = 44, 44, 6, 18
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
    x = Scale(min(line.steps[0], 0), max(line.steps[-1], 1), _PANEL_LEFT, PANEL_WIDTH - _PANEL_RIGHT)
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
        PANEL_WIDTH, PANEL_HEIGHT, summary, _bands(measure, y, share), curve, _steps(x, len(points))
    )


def _write(value: float, share: bool) -> str:
    return percent(value) if share else number(value)


def _scale(measure: Measure, series: Series) -> Scale:
    values = [*series.values, measure.good, measure.bad]
    if measure.name in _LOGARITHMIC and min(values) > 0:
        return Scale(min(values) / 2.5, max(values) * 2, PANEL_HEIGHT - _PANEL_BOTTOM, _PANEL_TOP, logarithmic=True)
    top = max(*series.values, 1.6 * max(measure.good, measure.bad))
    return Scale(
        min(*series.values, 0.0),
        min(top * 1.05, 1.0) if top <= 1 else top * 1.05,
        PANEL_HEIGHT - _PANEL_BOTTOM,
        _PANEL_TOP,
    )


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
                name, _PANEL_LEFT, top, PANEL_WIDTH - _PANEL_LEFT - _PANEL_RIGHT, height
            )
        )
        if height >= _THINNEST:
            parts.append(
                Markup('<text class="tick" x="{}" y="{:.1f}">{}</text>').format(
                    PANEL_WIDTH - _PANEL_RIGHT + 5, top + height / 2 + 3.5, name
                )
            )
    apart = abs(y(lower) - y(upper)) >= _THINNEST
    limits = [
        Markup(
            '<line class="limit" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="tick" x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
        ).format(
            _PANEL_LEFT, PANEL_WIDTH - _PANEL_RIGHT, y(value), _PANEL_LEFT - 5, y(value) + 3.5, _write(value, share)
        )
        for value in ((lower, upper) if apart else (measure.good,))
    ]
    return Markup("").join([*parts, *limits])


def _steps(x: Scale, points: int) -> Markup:
    if points == 1:
        return Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">measured once</text>').format(
            (x.start + x.stop) / 2, PANEL_HEIGHT - 5
        )
    return Markup(
        '<text class="tick" x="{}" y="{y}">{:,.0f}</text><text class="tick" x="{}" y="{y}" text-anchor="end">'
        "step {:,.0f}</text>"
    ).format(x.start, x.low, x.stop, x.high, y=PANEL_HEIGHT - 5)
