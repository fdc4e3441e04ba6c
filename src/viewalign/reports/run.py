"""The report of a run: one HTML file that needs no network."""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from viewalign import __version__
from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.registry import requirements_of
from viewalign.reports import pictures, run_charts, verdicts
from viewalign.reports.charts import scripts
from viewalign.reports.page import (
    leaf,
    number,
    percent,
    render_template,
    save_page,
    values_without_paths,
    without_paths,
)
from viewalign.reports.run_data import Array, RunRecord, read_run, setting
from viewalign.reports.verdicts import probe_gain
from viewalign.training.pictures import VOLUMES, prefix
from viewalign.utils.console import duration
from viewalign.utils.text import counted
from viewalign.views.latentcampus import sample_latentcampus
from viewalign.views.sampling import sample_one, sample_pair

_log = logging.getLogger(__name__)
PAGE = "report.html"
_MOST_EVENTS = 20
_SECONDS_BETWEEN, _SHARE = 30.0, 0.02


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not.

    Args:
        run: the run's folder.
        out: the page's file; None: `report.html` in the run's folder.

    Returns:
        The page's path.

    Raises:
        UserError: the folder contains no run, or the page cannot be written.
    """
    return save_page(run / PAGE if out is None else out, render(read_run(run)))


class LivePage:
    """Writes the page of a run while it trains: at most every half minute, and for at most 2 % of the time."""

    def __init__(self) -> None:
        self._earliest = -math.inf

    def __call__(self, run: Path, last: bool) -> None:
        """Write the page of the folder `run` if it is time for it, or if it is the `last` one.

        A page that cannot be written is reported, and the run continues.
        """
        begin = time.monotonic()
        if begin < self._earliest and not last:
            return
        try:
            save_page(run / PAGE, render(read_run(run, verify=last)))
        except Exception as problem:  # nothing in a page may end a training
            _log.warning("The page of the run could not be written: %s", problem)
        now = time.monotonic()
        self._earliest = now + max(_SECONDS_BETWEEN, (now - begin) / _SHARE)


def render(run: RunRecord) -> str:
    """Return the page of a run as HTML."""
    found = verdicts.assess(run)
    level, sentence = verdicts.overall(run, found)
    volumes = [drawn for arrays in by_volume(run.pictures) if (drawn := pictures.panels(arrays))]
    return render_template(
        "run.html",
        title=run.name,
        run=run,
        level=level,
        sentence=sentence,
        words={"good": "Good", "watch": "Watch", "bad": "Bad"},
        state=_state(run),
        about=_about(run),
        figures=_figures(run),
        note=without_paths(run.note),
        findings=[(finding, run_charts.band_curve(finding)) for finding in found],
        charts=run_charts.loss_charts(run),
        events=_events(run),
        volumes=volumes,
        hatchings=pictures.hatchings([panel for drawn in volumes for panel in drawn]),
        probe=probe_view(run),
        settings=_settings(run.config),
        versions=_versions(run),
        **scripts(),
    )


@dataclass(frozen=True)
class Figure:
    """A figure in the header of the page."""

    name: str
    value: str
    detail: str = ""


def _state(run: RunRecord) -> str:
    if run.finished:
        return f"Finished: {counted(run.steps, 'step')}"
    return f"Not finished: step {run.step:,} of {run.steps:,}" if run.steps else f"At step {run.step:,}"


def _about(run: RunRecord) -> list[tuple[str, str]]:
    """Return the head's table; unknown values are omitted."""
    facts, config = run.facts, run.config
    size = setting(config, "views.patch_size")
    volumes = facts.get("volumes")
    rows = [
        ("Method", setting(config, "method")),
        ("Network", setting(config, "network.name", setting(config, "network"))),
        ("Parameters trained", _plain(facts.get("parameters"))),
        ("Views", f"{' × '.join(str(n) for n in size)} voxels" if isinstance(size, list) else None),
        ("Batch", f"{counted(batch, 'volume')}{_views(config)}" if (batch := _batch(run)) else None),
        ("Data", _data(run) if isinstance(volumes, int) else leaf(str(setting(config, "data", "") or ""))),
        ("Device", facts.get("device")),
        ("Precision", _precision(run)),
        ("Started", _started(run)),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _precision(run: RunRecord) -> str | None:
    """Return the precision of the run, and the reason for it if it was logged."""
    chosen, reason = setting(run.config, "runtime.precision"), run.facts.get("precision", {}).get("reason")
    return f"{chosen} ({reason})" if chosen and reason else chosen


def _started(run: RunRecord) -> str | None:
    """Return the date of the start, and of the last resumption."""
    resumed = run.events("resumed")
    last = f", resumed {len(resumed)} ×, last {resumed[-1].get('time')}" if resumed else ""
    started = run.facts.get("started")
    return f"{started}{last}" if started else None


def by_volume(arrays: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Split stored pictures into those of each volume, without the prefix of their names."""
    starts = [prefix(k) for k in range(VOLUMES)]
    groups = [{name: array for name, array in arrays.items() if not name.startswith(tuple(starts[1:]))}]
    groups += [{n.removeprefix(s): one for n, one in arrays.items() if n.startswith(s)} for s in starts[1:]]
    return [group for group in groups if group]


def _batch(run: RunRecord) -> int:
    batch = run.config.get("batch")
    return batch if isinstance(batch, int) else 0


def _views(config: dict[str, Any]) -> str:
    """Return the number of views per volume; empty for other layouts and recipes of other versions."""
    try:
        sampler = requirements_of(Recipe.model_validate(config)).sampler
    except (ValueError, UserError):
        return ""
    if sampler is sample_one:
        return ", one view each"
    return ", two views each" if sampler in (sample_pair, sample_latentcampus) else ""


def _plain(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _data(run: RunRecord) -> str:
    facts = run.facts
    subjects = facts.get("subjects")
    held = facts.get("validation_volumes")
    whose = f" of {counted(subjects, 'subject')}" if isinstance(subjects, int) else ""
    kept = f", {held:,} held out" if isinstance(held, int) and held else ", none held out"
    return counted(facts["volumes"], "volume") + whose + kept


def _figures(run: RunRecord) -> list[Figure]:
    """Return loss and speed in a few figures."""
    out = []
    for kind, name in (("train", "Training loss"), ("validation", "Held-out loss")):
        series = run.series(kind, "loss")
        if len(series):
            out.append(Figure(name, number(series.last), f"{number(series.values[0])} at step {series.steps[0]:,}"))
    speed = run.series("train", "samples_per_second").finite()
    if len(speed):
        out.append(Figure("Speed", f"{number(_median(speed.values))} volumes/s", _duration(run)))
    wait = run.series("train", "data_wait").finite()
    if len(wait):
        out.append(Figure("Waiting for data", percent(_median(wait.values)), "of the time, median"))
    return out


def _median(values: tuple[float, ...]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _duration(run: RunRecord) -> str:
    """Estimate the training time from each row's speed, including validation and saving."""
    speed, batch = run.series("train", "samples_per_second"), _batch(run)
    before, seconds = 0, 0.0
    for step, rate in zip(speed.steps, speed.values, strict=True):
        seconds += (step - before) * batch / rate if rate > 0 else 0.0
        before = step
    return f"about {duration(seconds)} for {counted(before, 'step')}" if seconds else "median"


def _events(run: RunRecord) -> list[tuple[str, str]]:
    """Return (step, event), the first ones if there are many."""
    found = []
    for row in run.of("event"):
        event = str(row.get("event", "event"))
        if event == "skipped":
            text = f"Step skipped: gradient norm {row.get('gradient_norm')}, volumes {row.get('volumes')} of the store."
        elif event == "unreadable":
            text = f"Volume {row.get('volume')} of the store cannot be read: {row.get('reason')}"
        elif event == "checkpoint_failed":
            text = f"Checkpoint not written: {row.get('reason')}"
        elif event == "resumed":
            text = f"Resumed on {row.get('device')}, {row.get('time')}."
        else:
            rest = {key: value for key, value in row.items() if key not in {"kind", "step", "event"}}
            text = f"{event}: {rest}" if rest else event
        found.append((str(row.get("step", "")), without_paths(text)))
    more = len(found) - _MOST_EVENTS
    return found[:_MOST_EVENTS] + ([("…", f"and {more:,} more in log.jsonl")] if more > 0 else [])


def _settings(config: dict[str, Any]) -> str:
    """Write the recipe as YAML; with only the last part of every path, because pages are shared."""
    shown = {**config, **{key: leaf(str(config[key])) for key in ("data", "out") if config.get(key)}}
    return without_paths(yaml.safe_dump(values_without_paths(shown), sort_keys=False, allow_unicode=True))


def _versions(run: RunRecord) -> str:
    """Return the versions of the run if logged, otherwise those that created the page."""
    found = run.facts.get("versions")
    if isinstance(found, dict):
        return "The run used " + ", ".join(f"{name} {version}" for name, version in found.items()) + "."
    try:
        torch = f"torch {metadata.version('torch')}, "
    except metadata.PackageNotFoundError:
        torch = ""
    return f"This page was created with viewalign {__version__}, {torch}Python {platform.python_version()}."


@dataclass(frozen=True)
class Bar:
    """One bar: its name, value, and the positions of bar and interval in percent of the scale."""

    name: str
    text: str
    share: float
    interval: tuple[float, float] | None
    kind: str


@dataclass(frozen=True)
class ProbeView:
    """The probe's results on the page."""

    task: str
    metric: str
    sentence: str
    bars: list[Bar]
    ends: tuple[str, str]
    has_intervals: bool
    note: str


def probe_view(run: RunRecord) -> ProbeView | None:
    """Return a run's probe for the page; None without one."""
    if not run.probe:
        return None
    result = run.probe
    baselines = result.get("baselines")
    named = {str(k): float(v) for k, v in baselines.items()} if isinstance(baselines, dict) else {}
    values = {"pretrained": float(result["pretrained"]), "untrained": float(result["untrained"]), **named}
    intervals = {name: _interval(result, name) for name in values}
    reach = [*values.values(), *(end for pair in intervals.values() if pair for end in pair)]
    low, high = min(0.0, *reach), max(1.0, *reach)
    bars = [
        Bar(
            {"pretrained": "Pretrained", "untrained": "Same network, untrained"}.get(name, name.capitalize()),
            f"{value:.3f}",
            _share(value, low, high),
            None if (pair := intervals[name]) is None else (_share(pair[0], low, high), _share(pair[1], low, high)),
            "own" if name == "pretrained" else "other",
        )
        for name, value in values.items()
    ]
    return ProbeView(
        task=str(result.get("task", "")),
        metric=str(result.get("metric", "score")),
        sentence=_sentence(run, values),
        bars=bars,
        ends=(f"{low:.3g}", f"{high:.3g}"),
        has_intervals=any(bar.interval for bar in bars),
        note=without_paths(str(result.get("note", ""))),
    )


def _share(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _interval(result: dict[str, Any], name: str) -> tuple[float, float] | None:
    intervals = result.get("interval")
    pair = intervals.get(name) if isinstance(intervals, dict) else None
    return (float(pair[0]), float(pair[1])) if isinstance(pair, list) and len(pair) == 2 else None


def _sentence(run: RunRecord, values: dict[str, float]) -> str:
    """Describe the result and its uncertainty."""
    gain, ends = probe_gain(run), run.probe.get("gain")
    train, test = run.probe.get("cases_train"), run.probe.get("cases_test")
    fitted = (
        f"A linear classifier was fitted to frozen features of {counted(train, 'labelled volume')} "
        f"and evaluated on {counted(test, 'other')}. "
        if isinstance(train, int) and isinstance(test, int)
        else ""
    )
    text = (
        f"{fitted}Pretrained features reach {values['pretrained']:.3f}, those of the same network untrained "
        f"{values['untrained']:.3f}: a difference of {gain[0]:+.3f}"
    )
    pair = ends.get("interval") if isinstance(ends, dict) else None
    if not (isinstance(pair, list) and len(pair) == 2):
        return f"{text}; there are too few cases for an interval." if train else f"{text}."
    sure = "which excludes 0" if pair[0] > 0 else "which includes 0"
    if pair[1] < 0:
        sure = "below 0: pretraining made these features worse"
    return f"{text} (95 % interval over cases {pair[0]:+.3f} to {pair[1]:+.3f}), {sure}."
