"""Charts of every page: plotly figures as plain data, drawn in the browser by one script per page.

Colours are names of the page's CSS variables (`--train`), so that charts follow light and dark mode.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from markupsafe import Markup, escape

from viewalign.reports.page import file_text

Figure = dict[str, Any]
Trace = dict[str, Any]
SERIES = ("--train", "--validation", "--series-2", "--series-3", "--series-4", "--series-5")
"""Colours of classes, folds and runs; they repeat for further ones."""
_DIGITS = 5


@dataclass(frozen=True)
class Chart:
    """A chart and its text.

    Attributes:
        title: the quantity.
        caption: description, with the unit.
        figure: plotly's `data` and `layout`.
        summary: its values in a sentence, for readers who cannot see it.
        curves: whether the page's controls for smoothing and a logarithmic axis apply to it.
    """

    title: str
    caption: str
    figure: Figure
    summary: str = ""
    curves: bool = False

    def html(self) -> Markup:
        """Return the HTML element of the chart."""
        data = json.dumps(_plain(self.figure), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        kind, label = "chart curves" if self.curves else "chart", f"{self.title}. {self.summary}".strip()
        return Markup(
            '<div class="{}" role="img" aria-label="{}"><div class="plot" style="height:{}px"></div>'
            '<script type="application/json">{}</script></div>'
        ).format(kind, label, self.figure["layout"]["height"], Markup(data))


def scripts() -> dict[str, Any]:
    """Return the plotting library, compressed, and the script, for a template with charts."""
    return {"plotly": _library(), "script": Markup(file_text("charts.js"))}


@cache
def _library() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii"))


def _plain(value: Any) -> Any:
    """Return JSON types: numbers with five digits, non-finite numbers as gaps."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def series_color(number: int) -> str:
    """Return the colour of a class, fold or run by its number."""
    return SERIES[number % len(SERIES)]


def figure(traces: Iterable[Trace], x: str, y: str, height: int = 270, **layout: Any) -> Figure:
    """Return a figure in the style of the page.

    Args:
        traces: its lines and dots; those with `showlegend` are in the legend.
        x, y: titles of the axes.
        height: pixels.
        layout: further settings of plotly's layout; `xaxis` and `yaxis` are added to those set here.
    """
    traces = list(traces)
    axis = {
        "gridcolor": "--rule",
        "zeroline": False,
        "automargin": True,
        "exponentformat": "power",
        "title": {"standoff": 8},
    }
    axes = {
        name: axis | {"title": {"text": escaped(text), "standoff": 8}} | layout.pop(name, {})
        for name, text in (("xaxis", x), ("yaxis", y))
    }
    base = {
        "height": height,
        "margin": {"l": 44, "r": 12, "t": 8, "b": 40},
        "paper_bgcolor": "--ground",
        "plot_bgcolor": "--ground",
        "font": {"color": "--ink", "size": 12, "family": "system-ui, sans-serif"},
        "hoverlabel": {"bgcolor": "--raised", "font": {"color": "--ink"}},
        "modebar": {"color": "--soft", "activecolor": "--ink", "bgcolor": "rgba(0,0,0,0)"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "showlegend": any(trace.get("showlegend") for trace in traces),
        "hovermode": "closest",
    }
    return {"data": traces, "layout": base | axes | layout}


def line(
    x: Sequence[float], y: Sequence[float], name: str = "", color: str = "--train", dash: str = "solid", **more: Any
) -> Trace:
    """Return a line through points; it is in the legend if it has a name. A single point is a dot."""
    mode = more.pop("mode", "markers" if len(x) == 1 else "lines")
    return {
        "type": "scatter",
        "mode": mode,
        "x": list(x),
        "y": list(y),
        "name": escaped(name),
        "showlegend": bool(name),
        "line": {"color": color, "width": 2, "dash": dash},
        "marker": {"color": color, "size": 7},
        **more,
    }


def reference(x: Sequence[float], y: Sequence[float]) -> Trace:
    """Return a dashed grey reference line, such as chance."""
    return line(x, y, color="--soft", dash="dash", hoverinfo="skip") | {
        "line": {"color": "--soft", "width": 1, "dash": "dash"}
    }


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str = "--train") -> Trace:
    """Return the filled area between two lines."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": color,
        "line": {"width": 0, "color": color},
        "opacity": 0.18,
        "hoverinfo": "skip",
        "showlegend": False,
    }


def dots(x: Sequence[float], y: Sequence[float], texts: Sequence[str], color: str = "--train", **more: Any) -> Trace:
    """Return dots, each with a hover text."""
    marker = {"color": color, "size": 7, "opacity": 0.7} | more.pop("marker", {})
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "text": [escaped(text) for text in texts],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
        "showlegend": False,
        **more,
    }


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return the range of values with a margin at both ends; it starts at zero if that is near."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or 1.0
    floor = low - margin
    return (0.0 if floor < 0 <= low or 0 < low < 0.35 * high else floor), high + margin


def escaped(text: str) -> str:
    """Return a text escaped for plotly, which interprets some HTML tags in labels."""
    return str(escape(text))
