"""The page of a study: every measure as dots of seeds with intervals, and the table beneath."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from viewalign import __version__
from viewalign.errors import UserError
from viewalign.evaluation import task_metrics
from viewalign.reports.curves import Scale, padded, ticks
from viewalign.reports.page import render_template, write_text

PAGE = "report.html"
TITLES = {
    ("voxel_probe", "dice"): "Linear voxel probe, mean Dice",
    ("voxel_probe", "balanced_accuracy"): "Linear voxel probe, balanced accuracy",
    ("retrieval", "hit"): "Places found again in another view, share",
    ("retrieval", "distance"): "Distance of the place found, voxels",
    ("retrieval", "relative_distance"): "Distance of the place found ÷ that of a random guess",
    ("segmentation", "dice"): "Fine-tuned by nnU-Net, mean Dice",
    ("segmentation", "nsd"): "Fine-tuned by nnU-Net, surface Dice",
}
KINDS = {"feature_probe": "Vectors of whole cases", "finetune": "Fine-tuned on a task"}
LOWER_IS_BETTER = {"distance", "relative_distance", *task_metrics.LOWER_IS_BETTER}
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 720, 170, 20, 30, 10


def write_page(folder: Path) -> Path:
    """Write `report.html` into a study's folder, from its `table.json`, and return its path.

    Raises:
        UserError: there is no table yet, or the page cannot be written.
    """
    try:
        told = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} holds no table of a study; run `viewalign study` first.") from None
    return write_text(folder / PAGE, render(told))


def render(told: dict[str, Any]) -> str:
    """Return the page as HTML; every name in it is escaped.

    Args:
        told: what `table.json` holds: study, reference, and a row for each judge, measure and arm.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in told["rows"]:
        groups.setdefault((row["evaluation"], row["measure"]), []).append(row)
    filters = {
        "signed": lambda value: "–" if value is None else f"{value:+.4f}",
        "plain": lambda value: "–" if value is None else f"{value:.4f}",
    }
    return render_template(
        "study.html",
        filters=filters,
        name=told["study"],
        reference=told["reference"],
        seeds=max((row["seeds"] for row in told["rows"]), default=0),
        groups=[
            {
                "evaluation": evaluation,
                "title": title(rows[0].get("kind", ""), measure),
                "rows": rows,
                "chart": chart(rows),
                "on_cases": any("cases_mean" in row for row in rows),
            }
            for (evaluation, measure), rows in groups.items()
        ],
        version=__version__,
    )


def title(kind: str, measure: str) -> str:
    """Say what a judge of a kind measures, and which way is better where that is not plain."""
    name = TITLES.get((kind, measure), f"{KINDS.get(kind, kind)}, {measure}")
    return f"{name} (lower is better)" if measure in LOWER_IS_BETTER else name


def chart(rows: Sequence[dict[str, Any]]) -> Markup:
    """Draw one measure: a line for each arm with a dot for each seed, the mean, and its 95 % interval."""
    drawn = [v for row in rows for v in (*row["values"].values(), row["low"], row["high"])]
    values = [v for v in drawn if v is not None and v == v]
    if not values:
        return Markup("")
    low, high = min(values), max(values)
    low, high = padded([low, high]) if high > low else (low - 0.5, high + 0.5)
    bottom = _TOP + _ROW * len(rows)
    x = Scale(low, high, _LEFT, _WIDTH - _RIGHT)
    parts = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x(at), _TOP, bottom)
        + Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>').format(x(at), bottom + 16, at)
        for at in ticks(low, high, 6)
    ]
    for number, row in enumerate(rows):
        parts += _arm(row, x, _TOP + _ROW * (number + 0.5))
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="Values of each arm and seed">')
    return head.format(_WIDTH, bottom + 24) + Markup("").join(parts) + Markup("</svg>")


def _arm(row: dict[str, Any], x: Scale, y: float) -> list[Markup]:
    text = '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    parts = [Markup(text).format(_LEFT - 10, y + 4, escape(row["arm"]))]
    if row["low"] is not None and row["high"] is not None:
        line = '<line class="whisk" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
        parts.append(Markup(line).format(x(row["low"]), x(row["high"]), y, y))
    for seed, value in row["values"].items():
        if value == value:  # a judge may have had nothing to count
            dot = '<circle class="dot case" cx="{:.1f}" cy="{:.1f}" r="4"><title>seed {}: {:.4f}</title></circle>'
            parts.append(Markup(dot).format(x(value), y, seed, value))
    mean = '<line class="mean" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>'
    if row["mean"] == row["mean"]:
        parts.append(Markup(mean).format(x(row["mean"]), y - 9, y + 9))
    return parts
