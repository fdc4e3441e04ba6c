"""Charts of a segmentation fine-tuning: losses and Dice over epochs from nnU-Net's logs, and scores of all cases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from viewalign.evaluation.results import MEAN, Evaluation
from viewalign.reports.charts import Chart, Figure, Trace, dots, escaped, figure, line, series_color

_EPOCH = re.compile(r": Epoch (\d+)\s*$")
_VALUE = re.compile(r": (train_loss|val_loss|Pseudo dice) (.*)$")
_NUMBER = re.compile(r"-?(?:\d+\.\d*|\.\d+|\d+)(?:e[-+]?\d+)?|nan")
_HEIGHT, _ROW = 300, 34
Curve = dict[int, float]
"""A value by epoch, counted from 1."""


def read_curves(fold: Path) -> dict[str, Curve]:
    """Read the losses and the mean pseudo Dice of each epoch from the logs of a fold; later logs replace earlier ones.

    Returns:
        Curves named train_loss, val_loss and Pseudo dice, as far as they were logged.
    """
    found: dict[str, Curve] = {}
    for log in sorted(fold.glob("training_log_*.txt")):
        epoch = 0
        for text in log.read_text(errors="replace").splitlines():
            if match := _EPOCH.search(text):
                epoch = int(match[1]) + 1
            elif epoch and (match := _VALUE.search(text)):
                listed = re.sub(r"np\.float\d+", "", match[2])
                values = [float(value) for value in _NUMBER.findall(listed) if value != "nan"]
                if values:
                    found.setdefault(match[1], {})[epoch] = float(np.mean(values))
    return found


def training_charts(curves: Mapping[str, Mapping[str, Curve]]) -> list[Chart]:
    """Draw the losses and the pseudo Dice of every fold, by its name; see `read_curves`."""
    loss: list[Trace] = []
    dice: list[Trace] = []
    for number, (name, found) in enumerate(curves.items()):
        color = series_color(number)
        for key, words, dash in (("train_loss", "training", "solid"), ("val_loss", "validation", "dash")):
            loss += _line(found.get(key, {}), f"{name}, {words}" if len(curves) > 1 else words, color, dash)
        dice += _line(found.get("Pseudo dice", {}), name if len(curves) > 1 else "", color, "solid")
    charts = []
    if loss:
        caption = "nnU-Net's loss (cross-entropy minus Dice) of training and validation patches."
        charts.append(Chart("Loss", caption, _over_epochs(loss, "loss (no unit)")))
    if dice:
        caption = "Dice of validation patches, mean over classes; that of whole images is in the table."
        charts.append(Chart("Pseudo Dice", caption, _over_epochs(dice, "Dice")))
    return charts


def _line(curve: Curve, name: str, color: str, dash: str) -> list[Trace]:
    kept = {epoch: value for epoch, value in curve.items() if math.isfinite(value)}
    return [line(list(kept), list(kept.values()), name, color, dash)] if kept else []


def _over_epochs(traces: Sequence[Trace], unit: str) -> Figure:
    return figure(traces, "epoch", unit, _HEIGHT, hovermode="x unified", yaxis={"hoverformat": ".4g"})


def case_chart(evaluations: Mapping[str, Evaluation]) -> Chart | None:
    """Draw the Dice of each case as a dot, a row for each class, with the quartiles as a box."""
    labels = list(dict.fromkeys(label for one in evaluations.values() for label in one.rules.classes))
    labels += [MEAN] if len(labels) > 1 else []
    traces: list[Trace] = []
    for place, label in enumerate(labels):
        found = [
            (value, f"{case.name} ({split}): {value:.3f}")
            for split, one in evaluations.items()
            if label == MEAN or label in one.rules.classes
            for case, value in zip(one.cases, one.values("dice", label).tolist(), strict=True)
            if math.isfinite(value)
        ]
        if not found:
            continue
        values, texts = zip(*found, strict=True)
        box = {"type": "box", "x": list(values), "y": [place] * len(values), "orientation": "h", "boxpoints": False}
        box |= {"showlegend": False, "hoverinfo": "skip", "line": {"color": "--soft", "width": 1}}
        traces += [box, dots(values, [place] * len(values), texts)]
    if not traces:
        return None
    names = [escaped("mean over classes" if label == MEAN else label) for label in labels]
    count = len(labels)
    rows = {"tickvals": list(range(count)), "ticktext": names, "range": [count - 0.5, -0.5], "showgrid": False}
    caption = "A dot is a case; the box spans the quartiles, its line is the median."
    drawn = figure(traces, "Dice", "", 80 + _ROW * count, xaxis={"range": [-0.02, 1.02]}, yaxis=rows)
    return Chart("Dice of every case", caption, drawn)
