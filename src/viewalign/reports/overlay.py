"""Several pretraining runs on one page: their curves in one chart each, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign import __version__
from viewalign.errors import UserError
from viewalign.reports.charts import Chart, scripts, series_color
from viewalign.reports.page import leaf, number, render_template, save_page, without_paths
from viewalign.reports.run_charts import line_chart, term_title
from viewalign.reports.run_data import RunRecord, read_run, setting
from viewalign.utils.overrides import iter_nested
from viewalign.utils.settings_description import in_yaml
from viewalign.utils.text import counted

PAGE = "runs.html"
_NOT_SHOWN = {"samples_per_second", "data_wait"}
_PLACES = {"data", "out", "runtime", "log", "checkpoint"}
"""Groups of settings that do not belong to an experiment."""


@dataclass(frozen=True)
class Row:
    """A run in the table; its colour is the legend of all charts."""

    name: str
    color: str
    method: str
    network: str
    state: str
    loss: str
    held_out: str
    device: str


def write_overlay(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page about several runs.

    Args:
        runs: their folders.
        out: the page's file; None: `runs.html` in the current folder.

    Raises:
        UserError: a folder contains no run, two are the same, or the page cannot be written.
    """
    folders = [run.resolve() for run in runs]
    twice = next((run for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice.")
    names = _names(folders)
    return save_page(out or Path(PAGE), render(dict(zip(names, (read_run(run) for run in runs), strict=True))))


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def render(runs: dict[str, RunRecord]) -> str:
    """Return the page as HTML."""
    return render_template(
        "overlay.html",
        names=list(runs),
        rows=[_row(name, series_color(place), run) for place, (name, run) in enumerate(runs.items())],
        charts=overlay_charts(runs),
        differences=settings_that_differ(runs),
        version=__version__,
        **scripts(),
    )


def _row(name: str, color: str, run: RunRecord) -> Row:
    network = setting(run.config, "network.name", setting(run.config, "network"))
    state = f"{counted(run.steps, 'step')}" if run.finished else f"step {run.step:,} of {run.steps:,}"
    device = str(run.facts.get("device") or "–")
    method = str(setting(run.config, "method"))
    return Row(name, color, method, str(network), state, _last(run, "train"), _last(run, "validation"), device)


def _last(run: RunRecord, kind: str) -> str:
    series = run.series(kind, "loss").finite()
    return number(series.last) if len(series) else "–"


def overlay_charts(runs: dict[str, RunRecord]) -> list[Chart]:
    """Draw each logged quantity of all runs in one chart; held-out values are dashed."""
    train = dict.fromkeys(key for run in runs.values() for key in run.keys("train"))
    quantities = [("train", key) for key in sorted(train, key=lambda key: key != "loss") if key not in _NOT_SHOWN]
    probes = dict.fromkeys(key for run in runs.values() for key in run.keys("probe"))
    quantities += [("probe", key) for key in probes if not key.endswith(("_low", "_high"))]
    charts = []
    for kind, key in quantities:
        lines, styles = {}, {}
        for place, (name, run) in enumerate(runs.items()):
            lines[name], styles[name] = run.series(kind, key), (series_color(place), "solid")
            if kind == "train" and len(held := run.series("validation", key)):
                lines[f"{name}, held out"], styles[f"{name}, held out"] = held, (series_color(place), "dash")
        words = "Learning rate" if key == "lr" else term_title(key)
        title = f"Probe: {words}" if kind == "probe" else words
        if (chart := line_chart(title, "", title.lower(), lines, styles)) is not None:
            chart.figure["layout"]["showlegend"] = False
            charts.append(chart)
    return charts


def settings_that_differ(runs: dict[str, RunRecord]) -> list[tuple[str, list[str]]]:
    """Return each setting that is not equal in all runs, with its value in every run."""
    flat: list[dict[str, Any]] = []
    for run in runs.values():
        tree = {key: value for key, value in run.config.items() if key not in _PLACES}
        flat.append(dict(iter_nested(tree)))
    keys = sorted({key for one in flat for key in one})
    rows = [(key, [without_paths(leaf(in_yaml(one[key]))) if key in one else "–" for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
