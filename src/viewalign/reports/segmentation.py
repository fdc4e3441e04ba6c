"""The page of a segmentation fine-tuning: scores with intervals, and the best, median and worst case as pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from viewalign import __version__
from viewalign.data.file_types import SUFFIXES
from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.evaluation.results import MEAN, METRICS, Evaluation, read_evaluation
from viewalign.reports.charts import scripts
from viewalign.reports.page import data_url, render_template, save_page, without_paths
from viewalign.reports.pictures import Panel, Slice, Strip, shaded, window
from viewalign.reports.planes import PLANES, Plane, cut, outline
from viewalign.reports.segmentation_charts import Curve, case_chart, read_curves, training_charts
from viewalign.reports.segmentation_verdict import assess
from viewalign.utils.text import counted

RESULTS, PAGE = "results.json", "report.html"
COLOURS = 6
"""Colours of classes in the style sheet; further classes start again."""


@dataclass(frozen=True)
class Row:
    """A row of the table of scores."""

    split: str
    label: str
    dice: str
    nsd: str
    cases: int


@dataclass(frozen=True)
class Scored:
    """A case with its files, as far as they exist."""

    name: str
    split: str
    dice: float
    image: Path | None
    prediction: Path
    reference: Path


def write_page(run: Path, output: Path | None = None) -> Path:
    """Write `report.html` into a fine-tuning's folder, or elsewhere, and return its path.

    Raises:
        UserError: the folder contains no results, or the page cannot be written.
    """
    results = _results(run)
    evaluations = {row["name"]: read_evaluation(run / row["evaluation"]) for row in _evaluated(results)}
    text = _render(run, results, evaluations)
    return save_page(output or run / PAGE, text)


def _results(run: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads((run / RESULTS).read_text())
    except (OSError, ValueError):
        raise UserError(f"{run} contains no results of a fine-tuning ({RESULTS}).") from None
    for row in (tree, *tree["results"]):  # folders inside the run are relative to it
        row.update({key: str(run / row[key]) for key in ("model", "predictions", "references", "images") if key in row})
    return tree


def _evaluated(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in results["results"] if "evaluation" in row]


def _render(run: Path, results: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> str:
    labels = {name: tuple(values) for name, values in results["labels"].items()}
    curves = _curves(results)
    return render_template(
        "segmentation.html",
        name=run.resolve().name,
        about=_about(results),
        verdict=assess(evaluations, {name: one["Pseudo dice"] for name, one in curves.items() if "Pseudo dice" in one}),
        rows=_rows(evaluations),
        tolerances=_tolerances(evaluations),
        legend=[(f"c{k % COLOURS}", label) for k, label in enumerate(labels)],
        charts=[*training_charts(curves), *filter(None, [case_chart(evaluations)])],
        panels=_panels(_chosen(results, evaluations), labels),
        report=without_paths(_transfer_report(results)),
        version=__version__,
        **scripts(),
    )


def _curves(results: Mapping[str, Any]) -> dict[str, dict[str, Curve]]:
    """Read the training of each fold, as far as nnU-Net's logs are there."""
    folds = {row["name"]: Path(results["model"]) / f"fold_{row['fold']}" for row in _evaluated(results)}
    return {name: read_curves(folder) for name, folder in folds.items() if folder.is_dir()}


def _about(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    schedule = results["schedule"]
    return [
        ("Dataset", str(results["dataset"])),
        ("Started from", str(results["encoder"] or "scratch: no pretrained weights")),
        ("Plan", str(results["plans"])),
        ("Patch", " × ".join(str(n) for n in results["patch"]) + " voxels"),
        ("Voxel size", " × ".join(f"{n:g}" for n in results["spacing"]) + " mm"),
        ("Training", f"{counted(schedule['epochs'], 'epoch')} of {counted(schedule['iterations'], 'step')}"),
        (
            "Optimizer",
            f"{schedule['optimizer'].upper()}, rate {schedule['lr']:g}, "
            f"{counted(schedule['warmup_epochs'], 'epoch')} of warm-up",
        ),
        ("Frozen encoder", f"the first {counted(schedule['frozen'], 'epoch')}" if schedule["frozen"] else "never"),
    ]


def _rows(evaluations: Mapping[str, Evaluation]) -> list[Row]:
    rows = []
    for split, one in evaluations.items():
        for label in [*one.rules.classes, MEAN]:
            dice, nsd = (one.summary(metric, label) for metric in METRICS)
            shown = "mean over classes" if label == MEAN else label
            rows.append(Row(split, shown, dice.text(), nsd.text(), dice.cases))
    return rows


def _tolerances(evaluations: Mapping[str, Evaluation]) -> str:
    for one in evaluations.values():
        return ", ".join(f"{label} {limit:g} mm" for label, limit in one.rules.tolerances.items())
    return ""


def _transfer_report(results: Mapping[str, Any]) -> str:
    """Describe which weights were loaded, from the report of the first fold that has one."""
    for path in sorted(Path(results["model"]).glob("fold_*/transfer.json")):
        tree = json.loads(path.read_text())
        counts = ", ".join(f"{count} {what}" for what, count in tree["counts"].items() if count)
        return f"{tree['encoder_share']:.1%} of the encoder came from {tree['file']} ({counts})."
    return "No pretrained weights were loaded."


def _chosen(results: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> list[tuple[str, Scored]]:
    """Choose the best, the median and the worst case by mean Dice, over all splits."""
    scored = []
    for row in _evaluated(results):
        for case, dice in zip((one := evaluations[row["name"]]).cases, one.values("dice"), strict=True):
            prediction = _file(Path(row["predictions"]), case.name)
            reference = _file(Path(row["references"]), case.name)
            if math.isfinite(dice) and prediction and reference:
                image = _file(Path(row["images"]), f"{case.name}_0000")
                scored.append(Scored(case.name, row["name"], float(dice), image, prediction, reference))
    scored.sort(key=lambda case: case.dice)
    if not scored:
        return []
    picks = {"Best": scored[-1], "Median": scored[len(scored) // 2], "Worst": scored[0]}
    return list(picks.items())[: min(3, len(scored))]


def _file(folder: Path, name: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def _panels(chosen: Sequence[tuple[str, Scored]], labels: Mapping[str, tuple[int, ...]]) -> list[Panel]:
    """Draw the chosen cases, the last of which is the worst, and where the worst is most wrong."""
    panels = [_panel(title, case, labels) for title, case in chosen]
    if chosen and chosen[-1][1].dice < 1:
        panels.append(_panel("Largest error of the worst case", chosen[-1][1], labels, at_errors=True))
    return panels


def _panel(title: str, case: Scored, labels: Mapping[str, tuple[int, ...]], at_errors: bool = False) -> Panel:
    """Draw a case on three planes, each at the slice with most labelled voxels of the reference.

    A prediction must not choose the slices, which would look worse than the case is, unless errors are to be shown.
    """
    guess, truth = _upright(case.prediction), _upright(case.reference)
    image = _upright(case.image) if case.image else None
    maps = [sitk.GetArrayFromImage(one) for one in (guess, truth)]
    grey = np.zeros(maps[1].shape, np.float32) if image is None else sitk.GetArrayFromImage(image).astype(np.float32)
    spacing = truth.GetSpacing()[::-1]
    filled = np.isin(maps[1], [v for values in labels.values() for v in values])
    filled = filled if filled.any() else maps[0] > 0
    if at_errors:
        filled = np.logical_or.reduce([np.isin(maps[0], v) != np.isin(maps[1], v) for v in labels.values()])
    slices = {plane.name: _position(filled, plane) for plane in PLANES}
    limits = window(grey)
    strips = [
        Strip(name, [_slice(grey, limits, labelled, plane, slices, spacing, labels) for plane in PLANES])
        for name, labelled in (("Image", None), ("Reference", maps[1]), ("Prediction", maps[0]))
    ]
    where = "Each plane where most voxels are wrong." if at_errors else f"Mean Dice {case.dice:.3f}; {case.split}."
    return Panel(f"{title}: {case.name}", where, [], strips)


def _upright(path: Path) -> Any:
    """Read an image with its axes in LPS, as the planes expect."""
    return sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")


def _position(filled: NDArray[np.bool_], plane: Plane) -> int:
    others = tuple(axis for axis in range(3) if axis != plane.axis)
    counts = filled.sum(axis=others)
    return int(counts.argmax()) if counts.any() else filled.shape[plane.axis] // 2


def _slice(
    grey: NDArray[np.float32],
    limits: tuple[float, float],
    labelled: NDArray[Any] | None,
    plane: Plane,
    at: Mapping[str, int],
    spacing: tuple[float, ...],
    labels: Mapping[str, tuple[int, ...]],
) -> Slice:
    pixels = shaded(cut(grey, plane, at[plane.name]), limits)
    lines = Markup("")
    if labelled is not None:
        flat = cut(labelled, plane, at[plane.name])
        for number, values in enumerate(labels.values()):
            lines += outline(f"class c{number % COLOURS}", np.isin(flat, values))
    rows, columns = pixels.shape[:2]
    ratio = columns * spacing[plane.columns] / (rows * spacing[plane.rows])
    words = f"{plane.name} slice" + ("" if labelled is None else " with outlines of the classes")
    return Slice(data_url(pixels), words, round(float(ratio), 4), columns, rows, lines)
