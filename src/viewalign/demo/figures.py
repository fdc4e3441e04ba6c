"""The three figures that the demo ends with, read from the run's own files."""

from __future__ import annotations

import json
from typing import Any

from viewalign.training.folder import RunFolder
from viewalign.training.health import MEASURES
from viewalign.training.logs import read_log


def summarise(run: RunFolder) -> list[str]:
    """Return three lines: loss, effective rank with its verdict, and probe."""
    rows = read_log(run.log)
    return [_loss(rows), _rank(rows), _probe(run)]


def _loss(rows: list[dict[str, Any]]) -> str:
    kind = "validation" if any(row["kind"] == "validation" for row in rows) else "train"
    seen = [row for row in rows if row["kind"] == kind and "loss" in row]
    if not seen:
        return "Loss: not logged."
    first, last = seen[0], seen[-1]
    whose = "on held-out subjects" if kind == "validation" else "in training"
    return f"Loss {whose}: {first['loss']:.2f} at step {first['step']} → {last['loss']:.2f} at step {last['step']}"


def _rank(rows: list[dict[str, Any]]) -> str:
    seen = [row["effective_rank"] for row in rows if row["kind"] == "health" and "effective_rank" in row]
    if not seen:
        return "Effective rank of the features: not measured."
    level = next(measure for measure in MEASURES if measure.name == "effective_rank").level(seen[-1])
    return f"Effective rank of the features: {seen[-1]:.1f} ({level})"


def _probe(run: RunFolder) -> str:
    path = run.root / "probe.json"
    if not path.is_file():
        return "Probe: none, for there are no labels."
    result = json.loads(path.read_text(encoding="utf-8"))
    return (
        f"Probe (mean Dice): pretrained {_with_interval(result, 'pretrained')}, "
        f"untrained {_with_interval(result, 'untrained')}, "
        f"intensities alone {result['baselines']['intensity']:.3f}"
    )


def _with_interval(result: dict[str, Any], name: str) -> str:
    interval = result["interval"].get(name)
    text = f"{result[name]:.3f}"
    return text if interval is None else f"{text} ({interval[0]:.3f} to {interval[1]:.3f})"
