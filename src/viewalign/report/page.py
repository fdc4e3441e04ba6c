"""A run's page: everything of it in one HTML file that asks the network for nothing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from viewalign import __version__
from viewalign.errors import UserError
from viewalign.report import curves, panels, pictures, probing, verdicts
from viewalign.report.read import RunRecord, read_run, setting
from viewalign.report.rendering import file_text, render_template, write_text
from viewalign.report.wording import counted, leaf, number, percent, without_paths
from viewalign.training.logs import duration

_MOST_EVENTS = 20


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not.

    Args:
        run: the run's folder.
        out: the page's file; None takes `report.html` in the run's folder.

    Returns:
        The page's path.

    Raises:
        UserError: the folder holds no run, or the page cannot be written.
    """
    record = read_run(run)
    path = run / "report.html" if out is None else out
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file for the page.")
    return write_text(path, render(record))


def render(run: RunRecord) -> str:
    """Return the page of a run as HTML."""
    found = verdicts.judge(run)
    level, sentence = verdicts.overall(run, found)
    drawn = pictures.panels(run.pictures)
    return render_template(
        "template.html",
        script=Markup(file_text("hover.js")),
        title=run.name,
        run=run,
        level=level,
        sentence=sentence,
        words={"good": "Good", "watch": "Watch", "bad": "Bad"},
        state=_state(run),
        about=_about(run),
        figures=_figures(run),
        note=without_paths(run.note),
        findings=[(finding, panels.band_curve(finding)) for finding in found],
        charts=curves.loss_charts(run),
        events=_events(run),
        panels=drawn,
        hatchings=pictures.hatchings(drawn),
        probe=probing.probe_view(run),
        settings=_settings(run.config),
        versions=_versions(run),
    )


@dataclass(frozen=True)
class Figure:
    """A figure of the page's head."""

    name: str
    value: str
    detail: str = ""


def _state(run: RunRecord) -> str:
    if run.finished:
        return f"Finished: {run.steps:,} steps"
    return f"Not finished: step {run.step:,} of {run.steps:,}" if run.steps else f"At step {run.step:,}"


def _about(run: RunRecord) -> list[tuple[str, str]]:
    """Return the head's table; what a recipe or log does not have is left out."""
    facts, config = run.facts, run.config
    size = setting(config, "views.size")
    volumes = facts.get("volumes")
    rows = [
        ("Method", setting(config, "method")),
        ("Network", setting(config, "network.name", setting(config, "network"))),
        ("Parameters trained", _plain(facts.get("parameters"))),
        ("Views", f"{' × '.join(str(n) for n in size)} voxels" if isinstance(size, list) else None),
        ("Batch", f"{counted(batch, 'volume')}, two views each" if (batch := _batch(run)) else None),
        ("Data", _data(run) if isinstance(volumes, int) else leaf(str(setting(config, "data", "") or ""))),
        ("Precision", _precision(run)),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _precision(run: RunRecord) -> str | None:
    """Return the precision of the run, and why it was chosen where the log has that."""
    chosen, reason = setting(run.config, "runtime.precision"), run.facts.get("precision", {}).get("reason")
    return f"{chosen} ({reason})" if chosen and reason else chosen


def _batch(run: RunRecord) -> int:
    batch = run.config.get("batch")
    return batch if isinstance(batch, int) else 0


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
    """Estimate the time of training from each row's speed; validation and saving are inside it."""
    speed, batch = run.series("train", "samples_per_second"), _batch(run)
    before, seconds = 0, 0.0
    for step, rate in zip(speed.steps, speed.values, strict=True):
        seconds += (step - before) * batch / rate if rate > 0 else 0.0
        before = step
    return f"about {duration(seconds)} for {before:,} steps" if seconds else "median"


def _events(run: RunRecord) -> list[tuple[str, str]]:
    """Return (step, what happened), the first of them where there are many."""
    told = []
    for row in run.of("event"):
        event = str(row.get("event", "event"))
        if event == "skipped":
            text = f"Step skipped: gradient norm {row.get('gradient_norm')}, volumes {row.get('volumes')} of the store."
        elif event == "unreadable":
            text = f"Volume {row.get('volume')} of the store cannot be read: {row.get('reason')}"
        elif event == "checkpoint_failed":
            text = f"Checkpoint not written: {row.get('reason')}"
        else:
            rest = {key: value for key, value in row.items() if key not in {"kind", "step", "event"}}
            text = f"{event}: {rest}" if rest else event
        told.append((str(row.get("step", "")), without_paths(text)))
    more = len(told) - _MOST_EVENTS
    return told[:_MOST_EVENTS] + ([("…", f"and {more:,} more in log.jsonl")] if more > 0 else [])


def _settings(config: dict[str, Any]) -> str:
    """Write the recipe as YAML; of every path only its last part, for a page is shown to others."""
    shown = {**config, **{key: leaf(str(config[key])) for key in ("data", "out") if config.get(key)}}
    return without_paths(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))


def _versions(run: RunRecord) -> str:
    """Return the versions of the run where its log tells them, else those that made the page."""
    told = run.facts.get("versions")
    if isinstance(told, dict):
        return "The run was made with " + ", ".join(f"{name} {version}" for name, version in told.items()) + "."
    try:
        torch = f"torch {metadata.version('torch')}, "
    except metadata.PackageNotFoundError:
        torch = ""
    return f"This page was made with viewalign {__version__}, {torch}Python {platform.python_version()}."
