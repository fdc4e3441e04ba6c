"""Charts of a pretraining run: losses, learning rate, gradient norm, probes, and health figures over their ranges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from viewalign.methods.health import MEASURES, Measure
from viewalign.reports.charts import Chart, Trace, band, figure, line, padded
from viewalign.reports.page import number, percent
from viewalign.reports.run_data import RunRecord, Series, setting
from viewalign.reports.verdicts import Finding

_OTHERS = {"lr", "gradient_norm", "samples_per_second", "data_wait"} | {measure.name for measure in MEASURES}
_CAPTIONS = {
    "loss": "Sum of the terms below, each times its weight.",
    "contrastive": "NT-Xent over whole images, with other subjects as negatives, in nats.",
}
_CONSISTENCY = {
    "cosine": "2 − 2·cosine similarity at corresponding locations of two views: 0 is equal, 2 is unrelated.",
    "nt_xent": "NT-Xent over corresponding locations of two views, with other locations as negatives, in nats.",
    "gram": "Distance between the Gram matrices of features at corresponding locations of two views.",
}
_ERRORS = {"huber": "Huber loss", "mse": "Squared error"}
_WEIGHTED = ("cva", "mae", "simmim", "spark")
"""Methods that have settings of their reconstruction."""
_STEPS = {"tickformat": ",d", "hoverformat": ",d"}
_LINES = {"training": ("--train", "solid"), "held out": ("--validation", "dash"), "probe": ("--train", "solid")}


class Thinned(NamedTuple):
    """Mean, lowest and highest value of stretches of steps."""

    steps: list[float]
    means: list[float]
    lows: list[float]
    highs: list[float]


def thin(series: Series, most: int = 400) -> Thinned:
    """Average neighbouring values until at most `most` are left; values must be finite."""
    stretch = max(1, math.ceil(len(series) / most))
    edges = range(0, len(series), stretch)
    steps, values = np.array(series.steps, dtype=np.float64), np.array(series.values, dtype=np.float64)
    counts = np.diff([*edges, len(series)])
    means = (np.add.reduceat(one, edges) / counts for one in (steps, values))
    ends = (reduce.reduceat(values, edges) for reduce in (np.minimum, np.maximum))
    return Thinned(*(one.tolist() for one in (*means, *ends)))


def loss_charts(run: RunRecord) -> list[Chart]:
    """Draw the total loss, its terms, the learning rate and the gradient norm, as far as they were logged."""
    names = [name for name in run.keys("train") if name not in _OTHERS]
    names = sorted(names, key=lambda name: name != "loss")
    charts = [_term(run, name) for name in names]
    rate = _single(run, "lr", "Learning rate", "Set by warm-up and decay.")
    norm = _single(run, "gradient_norm", "Gradient norm", _clipping(run))
    return [chart for chart in (*charts[:1], *_probes(run), rate, *charts[1:], norm) if chart is not None]


def _probes(run: RunRecord) -> list[Chart | None]:
    """Draw the scores of the online probe, from the untrained network on."""
    names = [name for name in run.keys("probe") if not name.endswith(("_low", "_high"))]
    charts = []
    for name in names:
        words = name.replace("_", " ")
        low, high = (run.series("probe", f"{name}_{end}").finite() for end in ("low", "high"))
        ends = f"; at the end 95 % over subjects {number(low.last)} to {number(high.last)}" if len(low) else ""
        caption = f"Linear probe on frozen features of labelled cases{ends}. Step 0 is the untrained network."
        lines = {"probe": run.series("probe", name)}
        charts.append(line_chart(f"Probe: {words}", caption, f"{words} (no unit)", lines))
    return charts


def _clipping(run: RunRecord) -> str:
    clip = setting(run.config, "optim.clip")
    return f"Before clipping at {number(float(clip))}." if clip else "Not clipped."


def _term(run: RunRecord, name: str) -> Chart | None:
    caption, weight = _caption(run.config, name), setting(run.config, f"objectives.{name}_weight")
    weighted = {"reconstruction": _WEIGHTED, "consistency": ("cva",), "contrastive": ("cva",)}.get(name, ())
    if isinstance(weight, int | float) and setting(run.config, "method", "cva") in weighted:
        caption = f"{caption} Weight\u00a0{number(float(weight))}.".strip()
    lines = {"training": run.series("train", name), "held out": run.series("validation", name)}
    unit = "loss (nats)" if name == "contrastive" else "loss (no unit)"
    return line_chart(term_title(name), f"{caption}{_resumed(run)}", unit, lines, marks=_marks(run))


def term_title(name: str) -> str:
    """Return the title of a logged term's chart."""
    return "Total loss" if name == "loss" else name.replace("_", " ").capitalize()


def _caption(config: dict[str, Any], name: str) -> str:
    """Return what a term is in this recipe."""
    method = setting(config, "method", "cva")
    if name == "consistency" and method == "cva":
        return _CONSISTENCY.get(setting(config, "objectives.consistency", "cosine"), "")
    if name != "reconstruction":
        return _CAPTIONS.get(name, "")
    error = _ERRORS["mse"] if method != "swinunetr" else "Absolute error"
    where = ""
    if method in _WEIGHTED:
        error = _ERRORS.get(setting(config, "objectives.reconstruction", "huber"), "Error")
        where = " on masked voxels" if setting(config, "masking.ratio", 0.75) else " on all voxels"
    return f"{error}{where}, in standard deviations of the image."


def _marks(run: RunRecord) -> list[int]:
    return [int(row["step"]) for row in run.events("resumed")]


def _resumed(run: RunRecord) -> str:
    return " Dotted: the run was resumed." if _marks(run) else ""


def _single(run: RunRecord, name: str, title: str, caption: str) -> Chart | None:
    return line_chart(title, caption, f"{title.lower()} (no unit)", {"training": run.series("train", name)})


Style = tuple[str, str]
"""Colour and dash of a line."""


def line_chart(
    title: str,
    caption: str,
    unit: str,
    lines: Mapping[str, Series],
    styles: Mapping[str, Style] = _LINES,
    marks: Sequence[int] = (),
) -> Chart | None:
    """Draw one or more lines over steps; None without finite values.

    Args:
        title, caption: text of the chart.
        unit: of the values.
        lines: by name.
        styles: of each line.
        marks: steps at which the run was resumed, drawn as dotted lines.
    """
    thinned = {name: thin(series.finite()) for name, series in lines.items() if len(series.finite())}
    if not thinned:
        return None
    several = len(thinned) > 1
    traces = [trace for name, one in thinned.items() for trace in _traces(name, one, styles[name], several)]
    every = [v for one in thinned.values() for v in (*one.lows, *one.highs)]
    drawn = figure(
        traces,
        "step",
        unit,
        hovermode="x unified",
        xaxis={**_STEPS, "range": [0, _right(one.steps[-1] for one in thinned.values())]},
        yaxis={"hoverformat": ".4g", "range": list(padded(every))},
        shapes=[_mark(step) for step in marks],
    )
    return Chart(title, caption, drawn, _summary(thinned), curves=True)


def _mark(step: int) -> Trace:
    place = {"x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", "line": {"color": "--soft", "width": 1, "dash": "dot"}, **place}


def _right(ends: Iterable[float]) -> float:
    return max(*ends, 1) * 1.01


def _traces(name: str, one: Thinned, style: Style, legend: bool) -> list[Trace]:
    """Draw a line, the range around it where steps were averaged, and dots where there are few values."""
    color, dash = style
    mode = "lines+markers" if dash == "dash" and len(one.steps) <= 40 else "lines"
    around = [band(one.steps, one.lows, one.highs, color)] if one.lows != one.highs else []
    single = {} if len(one.steps) == 1 else {"mode": mode}
    return [*around, line(one.steps, one.means, name, color, dash, **single) | {"showlegend": legend}]


def _summary(lines: dict[str, Thinned]) -> str:
    return " ".join(
        f"{name.capitalize()}: from {number(one.means[0])} at step {one.steps[0]:,.0f} "
        f"to {number(one.means[-1])} at step {one.steps[-1]:,.0f}."
        for name, one in lines.items()
    )


_LOGARITHMIC = {"effective_rank", "alignment_error"}
_PANEL_HEIGHT = 150


def band_curve(finding: Finding) -> Chart | None:
    """Draw a finding's values over its good, watch and bad ranges; None without a measure or values."""
    measure, series = finding.measure, finding.series.finite()
    if measure is None or not len(series):
        return None
    logarithmic, (low, high) = _extent(measure, series)
    share = measure.name == "data_wait"
    one = thin(series, 200)
    ticks = {"tickvals": list(one.steps)} if len(one.steps) == 1 else {"nticks": 4}
    shapes, names = _bands(measure, low, high, logarithmic)
    ends = [math.log10(low), math.log10(high)] if logarithmic else [low, high]
    limits = [measure.good] if _near(measure, ends, logarithmic) else sorted((measure.good, measure.bad))
    drawn = figure(
        [line(one.steps, one.means)],
        "step",
        "",
        _PANEL_HEIGHT,
        shapes=shapes,
        annotations=names,
        margin={"l": 40, "r": 46, "t": 4, "b": 34},
        hovermode="x",
        xaxis={**_STEPS, "showgrid": False, "range": [0, _right(one.steps)], **ticks},
        yaxis={
            "type": "log" if logarithmic else "linear",
            "range": ends,
            "hoverformat": ".1%" if share else ".4g",
            "tickvals": limits,
            "ticktext": [_write(limit, share) for limit in limits],
            "showgrid": False,
        },
    )
    summary = (
        f"{finding.value} at step {series.steps[-1]:,}, {finding.level}; "
        f"lowest {_write(min(series.values), share)}, highest {_write(max(series.values), share)}."
    )
    return Chart(finding.title, "", drawn, summary)


def _write(value: float, share: bool) -> str:
    return percent(value) if share else number(value)


def _extent(measure: Measure, series: Series) -> tuple[bool, tuple[float, float]]:
    """Return whether the axis is logarithmic, and its ends."""
    values = [*series.values, measure.good, measure.bad]
    if measure.name in _LOGARITHMIC and min(values) > 0:
        return True, (min(values) / 2.5, max(values) * 2)
    top = max(*series.values, 1.6 * max(measure.good, measure.bad))
    return False, (min(*series.values, 0.0), min(top * 1.05, 1.0) if top <= 1 else top * 1.05)


def _near(measure: Measure, ends: Sequence[float], logarithmic: bool) -> bool:
    """Return whether the two limits are too close for two tick labels."""
    limits = [math.log10(v) if logarithmic else v for v in (measure.good, measure.bad)]
    return abs(limits[0] - limits[1]) < 0.1 * (ends[1] - ends[0])


def _bands(measure: Measure, low: float, high: float, logarithmic: bool) -> tuple[list[Trace], list[Trace]]:
    """Return three coloured ranges, and their names where a range is high enough for a label."""
    lower, upper = sorted((measure.good, measure.bad))
    names = ("bad", "watch", "good") if measure.good >= measure.bad else ("good", "watch", "bad")
    edges = [low, lower, upper, high]
    shapes, labels = [], []
    for name, start, stop in zip(names, edges, edges[1:], strict=False):
        place = {"xref": "paper", "x0": 0, "x1": 1, "y0": start, "y1": stop}
        shapes.append({"type": "rect", "fillcolor": f"--{name}-band", "line": {"width": 0}, "layer": "below", **place})
        where = [math.log10(v) if logarithmic else v for v in (start, stop, low, high)]
        if where[1] - where[0] >= 0.1 * (where[3] - where[2]):
            middle = (where[0] + where[1]) / 2
            labels.append(
                {"xref": "paper", "x": 1.01, "xanchor": "left", "y": middle, "text": name, "showarrow": False}
            )
    return shapes, labels
