"""The page of a fine-tuned classification or regression: metrics with intervals, folds, curves, worst cases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from viewalign import __version__
from viewalign.evaluation import task_metrics
from viewalign.evaluation.predictions import TaskPredictions, read_predictions
from viewalign.finetuning.classification.finetune import LOSSES
from viewalign.reports import task_charts, task_verdict
from viewalign.reports.charts import Chart, scripts
from viewalign.reports.page import number, render_template, save_page, score, values_without_paths, without_paths
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.text import counted
from viewalign.utils.yaml_values import load_yaml

PAGE = "report.html"
_WORST = 10
WORDS = {
    "balanced_accuracy": "Balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "f1": "F1",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "brier": "Brier score",
    "ece": "Calibration error",
    "mae": "Mean absolute error",
    "rmse": "Root mean squared error",
    "r2": "R²",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mean_error": "Mean error",
}
_IN_UNIT = {"mae", "rmse", "mean_error"}


@dataclass(frozen=True)
class Figure:
    """One metric as text; `bars` are value, low and high in percent of a scale from 0 to 1.

    `baseline` is the value of predictions that ignore the image.
    """

    name: str
    value: str
    interval: str
    lower: bool
    bars: tuple[float, float, float] | None
    baseline: str = ""


def write_page(run: Path, output: Path | None = None) -> Path:
    """Write `report.html` into a fine-tuning's folder, or elsewhere, and return its path.

    Raises:
        UserError: the folder contains no predictions, or the page cannot be written.
    """
    text = render(run)
    return save_page(output or run / PAGE, text)


def render(run: Path) -> str:
    """Return the page as HTML; every name in it is escaped."""
    outcomes, metrics = read_predictions(run), _json(run / "metrics.json") or {}
    held_out, test = outcomes.of_folds(test=False), outcomes.of_folds(test=True)
    in_folds = bool(held_out.cases)
    evaluated = held_out if in_folds else test
    spec = outcomes.spec
    first = WORDS.get(spec.figure, spec.figure)
    scored = metrics.get("held_out" if in_folds else "test", {})
    verdict = task_verdict.assess(evaluated, first, scored.get("intervals", {}).get(spec.figure))
    baseline = verdict.values if verdict else {}
    figures = figures_of(scored, spec, baseline)
    return render_template(
        "task.html",
        name=run.resolve().name,
        kind="regression" if spec.kind == "regression" else "classification",
        about=_about(run, outcomes, metrics),
        first=next((f for f in figures if f.name == first), None),
        figures=figures,
        verdict=verdict,
        tested=figures_of(metrics["test"], spec, {}) if in_folds and "test" in metrics else [],
        in_folds=in_folds,
        counts=(len(evaluated.cases), len(set(evaluated.subjects)), len(test.cases)),
        folds=_folds(held_out),
        shown=[WORDS[name] for name in _shown(spec)],
        charts=[*task_charts.charts(evaluated), *_losses(run)] if evaluated.cases else [],
        confusion=_confusion(evaluated),
        classes=spec.classes,
        worst=_worst(outcomes),
        left_out=counted(len(_json(run / "refused.json") or []), "case"),
        excluded=_json(run / "refused.json") or [],
        settings=_settings(run),
        version=__version__,
        **scripts(),
    )


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def figures_of(metrics: Mapping[str, Any], spec: TaskSpec, baseline: Mapping[str, float]) -> list[Figure]:
    """Return the metrics, the task's primary metric first, beside those of a baseline."""
    values: dict[str, float] = metrics.get("values", {})
    names = sorted(values, key=lambda name: name != spec.figure)
    intervals = metrics.get("intervals", {})
    return [_figure(name, values[name], intervals.get(name), spec, baseline.get(name)) for name in names]


def _figure(
    name: str, value: float | None, ends: Sequence[float] | None, spec: TaskSpec, baseline: float | None
) -> Figure:
    unit = f" {spec.unit}" if spec.unit and name in _IN_UNIT else ""
    defined = value is not None and math.isfinite(value)
    text = f"{score(value)}{unit}" if value is not None and defined else "not defined"
    interval = "" if ends is None else f"{score(ends[0])} to {score(ends[1])}"
    bars = None
    if value is not None and defined and spec.kind != "regression":
        low, high = (value, value) if ends is None else ends
        bars = tuple(100 * min(max(v, 0.0), 1.0) for v in (value, low, high))
    other = "" if baseline is None or not math.isfinite(baseline) else f"{score(round(baseline, 3) + 0.0)}{unit}"
    return Figure(WORDS.get(name, name), text, interval, name in task_metrics.LOWER_IS_BETTER, bars, other)  # type: ignore[arg-type]


def _shown(spec: TaskSpec) -> list[str]:
    """Return the metrics of the table of folds: the primary one and the usual ones."""
    usual = {
        "binary": ["auroc", "balanced_accuracy", "average_precision", "sensitivity", "specificity"],
        "multiclass": ["balanced_accuracy", "auroc", "f1", "accuracy"],
        "multilabel": ["auroc", "average_precision", "f1", "balanced_accuracy"],
        "regression": ["mae", "rmse", "r2", "pearson", "mean_error"],
    }[spec.kind]
    return list(dict.fromkeys([spec.figure, *usual]))


def _folds(outcomes: TaskPredictions) -> list[tuple[str, int, list[str]]]:
    """Return each fold's number, cases and metrics, then mean and standard deviation over folds."""
    names, rows, found = _shown(outcomes.spec), [], []
    for fold in sorted(set(outcomes.folds), key=lambda text: (len(text), text)):
        part = outcomes.select([k for k, one in enumerate(outcomes.folds) if one == fold])
        values = task_metrics.evaluate(part.spec.kind, part.truth, part.predicted)
        found.append([values[name] for name in names])
        rows.append((f"fold {fold}", len(part.cases), [_three(value) for value in found[-1]]))
    if len(rows) > 1:
        columns = [[v for v in column if math.isfinite(v)] for column in zip(*found, strict=True)]
        metrics = [f"{score(fmean(c))} ± {score(stdev(c))}" if len(c) > 1 else "–" for c in columns]
        rows.append(("mean ± deviation", sum(row[1] for row in rows), metrics))
    return rows


def _three(value: float) -> str:
    return score(value) if math.isfinite(value) else "–"


def _confusion(outcomes: TaskPredictions) -> list[list[tuple[int, float]]]:
    """Return counts of true (rows) and predicted classes, with the fraction of the row."""
    if outcomes.spec.kind not in ("binary", "multiclass") or not outcomes.cases:
        return []
    count = len(outcomes.spec.classes)
    table = np.zeros((count, count), dtype=int)
    np.add.at(table, (outcomes.truth.astype(int), outcomes.predicted.argmax(1)), 1)
    return [[(int(n), float(n / max(1, row.sum()))) for n in row] for row in table]


def _worst(outcomes: TaskPredictions) -> list[tuple[str, str, str, str]]:
    """Return case, fold, truth and prediction of the worst cases."""
    spec, scores = outcomes.spec, outcomes.case_scores()
    order = np.argsort(scores if spec.kind != "regression" else -scores, kind="stable")[:_WORST]
    rows = []
    for k in order.tolist():
        truth, guess = outcomes.truth[k], outcomes.predicted[k]
        if spec.kind == "regression":
            texts = (f"{number(float(truth))} {spec.unit}", f"{number(float(guess))} ({float(guess - truth):+.3g})")
        elif spec.kind == "multilabel":
            named = [name for name, there in zip(spec.classes, truth, strict=True) if there]
            texts = (
                ", ".join(named) or "none",
                ", ".join(f"{n} {p:.2f}" for n, p in zip(spec.classes, guess, strict=True)),
            )
        else:
            winner = int(guess.argmax())
            texts = (spec.classes[truth], f"{spec.classes[winner]} {guess[winner]:.2f} (true class {guess[truth]:.2f})")
        rows.append((outcomes.cases[k], outcomes.folds[k], *texts))
    return rows


def _losses(run: Path) -> list[Chart]:
    files = sorted(run.glob(f"fold_*/{LOSSES}"), key=lambda file: (len(file.parent.name), file.parent.name))
    chart = task_charts.loss_chart([_json(file) or [] for file in files])
    return [] if chart is None else [chart]


def _settings(run: Path) -> str:
    try:
        return without_paths((run / "settings.yaml").read_text(encoding="utf-8"))
    except OSError:
        return ""


def _about(run: Path, outcomes: TaskPredictions, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    spec = outcomes.spec
    settings = load_yaml(_settings(run) or "{}") or {}
    rows = [("Task", f"{spec.name}: {spec.kind}")]
    if spec.classes:
        counts = (
            np.sum(outcomes.truth, 0)
            if spec.kind == "multilabel"
            else np.bincount(outcomes.truth, minlength=len(spec.classes))
        )
        rows.append(("Classes", ", ".join(f"{n} ({c})" for n, c in zip(spec.classes, counts, strict=True))))
    else:
        rows.append(
            ("Targets", f"{number(float(outcomes.truth.min()))} to {number(float(outcomes.truth.max()))} {spec.unit}")
        )
    rows.append(("Channels", ", ".join("|".join((c.name, *c.aliases)) for c in spec.channels)))
    rows.append(("Started from", values_without_paths(str(metrics.get("encoder", metrics.get("network", "unknown"))))))
    if settings:
        rows.append(
            (
                "Training",
                f"{settings['mode']}, {counted(settings['epochs'], 'epoch')}, "
                f"batch {settings['batch']}, rate {settings['lr']:g}",
            )
        )
        rows.append(("Pooling", str(settings["pool"])))
    return rows
