"""The page of a study: every measure as dots of seeds with intervals, and its table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from viewalign import __version__
from viewalign.errors import UserError
from viewalign.evaluation import task_metrics
from viewalign.reports.charts import Chart, Trace, dots, escaped, figure, scripts
from viewalign.reports.page import render_template, save_page, score
from viewalign.reports.task import WORDS
from viewalign.utils.text import counted

PAGE, TABLE = "report.html", "table.json"
TITLES = {
    ("voxel_probe", "dice"): "Linear voxel probe, mean Dice",
    ("voxel_probe", "balanced_accuracy"): "Linear voxel probe, balanced accuracy",
    ("retrieval", "hit"): "Share of locations retrieved in another view",
    ("retrieval", "distance"): "Distance to the true location, voxels",
    ("retrieval", "relative_distance"): "Distance to the true location ÷ that of a random guess",
    ("segmentation", "dice"): "Fine-tuned by nnU-Net, mean Dice",
    ("segmentation", "nsd"): "Fine-tuned by nnU-Net, surface Dice",
}
KINDS = {"feature_probe": "Probe on embeddings", "finetune": "Fine-tuned on a task"}
LOWER_IS_BETTER = {"distance", "relative_distance", *task_metrics.LOWER_IS_BETTER}
_ROW, _TALL_ROW = 32, 48
"""Pixels for each arm, with a label of one and of two lines."""


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html` into a study's folder, or elsewhere, from its `table.json`, and return its path.

    Raises:
        UserError: there is no table yet, or the page cannot be written.
    """
    try:
        table = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} contains no table of a study; run `viewalign study` first.") from None
    return save_page(output or folder / PAGE, render(table))


def render(table: dict[str, Any]) -> str:
    """Return the page as HTML; every name in it is escaped.

    Args:
        table: contents of `table.json`: study, reference, a row for each evaluator, measure and arm, missing cells.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in table["rows"]:
        groups.setdefault((row["evaluation"], row["measure"]), []).append(row)
    findable = {(one["evaluation"], one["measure"]): one for one in table.get("resolution", ())}
    comparisons = (table.get("summary") or {}).get("comparisons", ())
    labelled = {one["evaluation"]: one["labelled"].capitalize() for one in comparisons}
    filters = {
        "signed": lambda value: "–" if value is None or math.isnan(value) else f"{value:+.4f}",
        "plain": lambda value: "–" if value is None or math.isnan(value) else f"{value:.4f}",
        "score": _score,
        "label": label,
        "seeds_text": seeds_text,
        "words": lambda measure: WORDS.get(measure, measure.capitalize()),
    }
    return render_template(
        "study.html",
        filters=filters,
        name=table["study"],
        summary=table.get("summary"),
        forest=forest(comparisons),
        reference=table["reference"],
        seeds=max((row["seeds"] for row in table["rows"]), default=0),
        shared=any(row.get("runs") == 1 < row["seeds"] for row in table["rows"]),
        missing=missing_texts(table),
        groups=[
            {
                "evaluation": labelled.get(evaluation, evaluation),
                "title": title(rows[0].get("kind", ""), measure),
                "rows": rows,
                "chart": chart(rows),
                "findable": findable.get((evaluation, measure)),
                "on_cases": any("cases_mean" in row for row in rows),
            }
            for (evaluation, measure), rows in groups.items()
        ],
        version=__version__,
        **scripts(),
    )


def label(row: Mapping[str, Any]) -> str:
    """Return the name of a row's arm, after its title if it has one."""
    return f"{row['title']} ({row['arm']})" if row.get("title") else str(row["arm"])


def seeds_text(row: Mapping[str, Any]) -> str:
    """Return the number of a row's seeds, and that of pretrainings if it is smaller, as `3 (1 run)`."""
    runs = row.get("runs", row["seeds"])
    return f"{row['seeds']} ({counted(runs, 'run')})" if runs < row["seeds"] else str(row["seeds"])


def missing_texts(table: Mapping[str, Any]) -> list[str]:
    """Return, for each evaluation with missing cells, a sentence that states which ones and why."""
    groups: dict[str, dict[tuple[str, str], list[str]]] = {}
    for one in table.get("missing", ()):
        reason = (one["error"] or "not finished yet").splitlines()[0].rstrip(".")
        groups.setdefault(one["evaluation"], {}).setdefault((one["arm"], reason), []).append(str(one["seed"]))
    texts = []
    for evaluation, by_arm in groups.items():
        rows = [row for row in table["rows"] if row["evaluation"] == evaluation]
        done = {(row["arm"], seed) for row in rows for seed in row["values"]}
        count = sum(map(len, by_arm.values()))
        which = [
            f"{arm} (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}: {reason})"
            for (arm, reason), seeds in by_arm.items()
        ]
        start = f"{evaluation}: {count} of {counted(count + len(done), 'cell')} of this evaluation"
        texts.append(f"{start} {'is' if count == 1 else 'are'} missing: {'; '.join(which)}.")
    return texts


def _score(value: float | None, sign: str = "") -> str:
    return "–" if value is None or math.isnan(value) else score(value, sign)


def forest(comparisons: Sequence[dict[str, Any]]) -> Chart | None:
    """Draw the differences of a gain: a dot with its interval for each comparison, and a line at no difference."""
    shown = [one for one in comparisons if math.isfinite(one["difference"]["mean"])]
    if not shown:
        return None
    traces = []
    for place, one in enumerate(shown):
        mean, low, high = (one["difference"][key] for key in ("mean", "low", "high"))
        color = {None: "--soft", True: "--good", False: "--bad"}[one["better"]]
        ends = "no interval" if low is None else f"{low:+.4f} to {high:+.4f}"
        more: dict[str, Any] = {} if low is None else {"error_x": _interval(mean, low, high) | {"color": color}}
        traces.append(dots([mean], [place], [f"{mean:+.4f} ({ends})"], color, marker={"opacity": 1.0}, **more))
    names = [
        escaped(f"{one['arm']} − {one['reference']}")
        + "<br>"  # a phone has no room for one line
        + escaped(f"{'frozen' if one['frozen'] else 'fine-tuned'}, {one['labelled'].removeprefix('with ')}")
        for one in shown
    ]
    zero = {"zeroline": True, "zerolinecolor": "--soft"}
    caption = "A dot is the mean difference, the bar its 95 % interval over seeds and test cases; grey crosses zero."
    drawn = figure(traces, "Difference", "", 80 + _TALL_ROW * len(shown), xaxis=zero, yaxis=_rows(names))
    return Chart("", caption, drawn)


def title(kind: str, measure: str) -> str:
    """Return the title of a measure, and which way is better if that is not obvious."""
    name = TITLES.get((kind, measure), ", ".join(filter(None, (KINDS.get(kind, kind), measure))))
    return f"{name} (lower is better)" if measure in LOWER_IS_BETTER else name


def chart(rows: Sequence[dict[str, Any]]) -> Chart | None:
    """Draw one measure: a row for each arm with a dot for each seed, the mean, and its 95 % interval."""
    traces = [trace for place, row in enumerate(rows) for trace in _arm(row, place)]
    if not traces:
        return None
    names = [escaped(label(row)) for row in rows]
    return Chart("Each arm and seed", "", figure(traces, "", "", 70 + _ROW * len(rows), yaxis=_rows(names)))


def _rows(names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of an axis with a row for each name, from top to bottom."""
    count = len(names)
    return {"tickvals": list(range(count)), "ticktext": names, "range": [count - 0.5, -0.5], "showgrid": False}


def _arm(row: dict[str, Any], place: int) -> list[Trace]:
    """Return the dots of an arm's seeds and its mean; a measure may have been undefined for some seeds."""
    seeds = {seed: value for seed, value in row["values"].items() if value is not None and math.isfinite(value)}
    if not seeds:
        return []
    texts = [f"{row['arm']}, seed {seed}: {value:.4f}" for seed, value in seeds.items()]
    traces = [dots(list(seeds.values()), [place] * len(seeds), texts)]
    mean, low, high = row["mean"], row["low"], row["high"]
    if mean is not None and math.isfinite(mean):
        interval = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
        marker = {"color": "--validation", "symbol": "line-ns-open", "size": 16, "opacity": 1.0, "line": {"width": 3}}
        more: dict[str, Any] = {"error_x": _interval(mean, low, high)} if interval else {}
        traces.append(dots([mean], [place], [f"{row['arm']}, mean: {mean:.4f}{interval}"], marker=marker, **more))
    return traces


def _interval(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"symmetric": False, "array": [high - mean], "arrayminus": [mean - low], "color": "--validation", "width": 0}
