"""The frozen-feature probe as bars and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from viewalign.report.read import RunRecord
from viewalign.report.verdicts import probe_gain
from viewalign.report.wording import counted, without_paths


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
    """What the page shows of a probe."""

    task: str
    metric: str
    sentence: str
    bars: list[Bar]
    ends: tuple[str, str]
    has_intervals: bool
    note: str


def probe_view(run: RunRecord) -> ProbeView | None:
    """Lay out a run's probe; None without one."""
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
    """Say what came out, and how sure that is."""
    gain, ends = probe_gain(run), run.probe.get("gain")
    train, test = run.probe.get("cases_train"), run.probe.get("cases_test")
    fitted = (
        f"A linear classifier was fitted to frozen features of {counted(train, 'labelled volume')} "
        f"and judged on {counted(test, 'other')}. "
        if isinstance(train, int) and isinstance(test, int)
        else ""
    )
    text = (
        f"{fitted}Pretrained features reach {values['pretrained']:.3f}, those of the same network untrained "
        f"{values['untrained']:.3f}: a difference of {gain[0]:+.3f}"
    )
    pair = ends.get("interval") if isinstance(ends, dict) else None
    if not (isinstance(pair, list) and len(pair) == 2):
        return f"{text}; with so few cases there is no interval for it." if train else f"{text}."
    sure = "so chance alone hardly explains it" if pair[0] > 0 else "so chance may explain it"
    if pair[1] < 0:
        sure = "so pretraining made these features worse"
    return f"{text} (95 % interval over cases {pair[0]:+.3f} to {pair[1]:+.3f}), {sure}."
