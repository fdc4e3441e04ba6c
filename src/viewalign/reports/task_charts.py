"""Charts of a fine-tuned task: ROC, precision and recall, calibration, predicted against true, errors, loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from viewalign.evaluation.predictions import TaskPredictions
from viewalign.evaluation.task_metrics import resample_counts
from viewalign.reports.charts import (
    Chart,
    Figure,
    Trace,
    band,
    dots,
    figure,
    line,
    padded,
    reference,
    series_color,
)
from viewalign.reports.page import number
from viewalign.utils.text import counted

HEIGHT = 380
_BINS = 10
_DRAWS = 300
_STEPS = np.linspace(0, 1, 101)
_UNIT_AXIS = {"range": [-0.01, 1.01]}
Array = NDArray[np.float64]


def charts(outcomes: TaskPredictions) -> list[Chart]:
    """Draw the charts of a kind of task, without those that are undefined for the cases (ROC of one class)."""
    if outcomes.spec.kind == "regression":
        return [_identity(outcomes), _errors(outcomes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = [_curves(outcomes, "roc"), _curves(outcomes, "precision"), _calibration(outcomes)]
    return [chart for chart in drawn if chart is not None]


def loss_chart(losses: Sequence[Sequence[float]]) -> Chart | None:
    """Draw each fold's training loss over its epochs."""
    traces = []
    for fold, values in enumerate(losses):
        kept = [(k + 1, v) for k, v in enumerate(values) if math.isfinite(v)]
        if kept:
            epochs, loss = zip(*kept, strict=True)
            traces.append(line(epochs, loss, f"fold {fold}" if len(losses) > 1 else "", series_color(fold)))
    if not traces:
        return None
    layout = {"yaxis": {"hoverformat": ".4g"}, "xaxis": {"dtick": 1} if max(map(len, losses)) <= 10 else {}}
    drawn = figure(traces, "epoch", "mean loss of an epoch", HEIGHT, hovermode="x unified", **layout)
    return Chart("Training loss", "On training cases with augmentation; it is not used for selection.", drawn)


def _sides(outcomes: TaskPredictions) -> list[tuple[int, str, NDArray[np.int64], Array]]:
    """Return number, name, truth and score of each class that is compared with the rest and has both sides."""
    spec, truth, score = outcomes.spec, outcomes.truth, outcomes.predicted
    one_hot = truth if spec.kind == "multilabel" else np.eye(len(spec.classes), dtype=np.int64)[truth]
    wanted = [1] if spec.kind == "binary" else range(len(spec.classes))
    columns = [(i, spec.classes[k], one_hot[:, k], score[:, k]) for i, k in enumerate(wanted)]
    return [column for column in columns if 0 < column[2].sum() < len(column[2])]


def _curves(outcomes: TaskPredictions, which: str) -> Chart | None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    sides, roc = _sides(outcomes), which == "roc"
    if not sides:
        return None
    traces: list[Trace] = [reference([0, 1], [0, 1])] if roc else []
    if len(sides) == 1:
        _, _, truth, score = sides[0]
        traces += [] if roc else [reference([0, 1], [float(truth.mean())] * 2)]
        traces += _band(truth, score, outcomes.subjects, roc)
    for number_, name, truth, score in sides:
        area = roc_auc_score(truth, score) if roc else average_precision_score(truth, score)
        x, y = _curve(truth, score, roc)
        traces.append(line(x.tolist(), y.tolist(), f"{name}: {area:.3f}", series_color(number_)))
    against = f"{sides[0][1]} versus the rest" if len(sides) == 1 else "Each class versus the rest"
    around = " The band contains 95 % of bootstrap samples of subjects." if len(sides) == 1 else ""
    if roc:
        words = f"{against}; the number is the area under the curve. Dashed: chance.{around}"
        return Chart("ROC curve", words, _unit_figure(traces, "1 − specificity", "sensitivity"))
    chance = " Dashed: the prevalence of the class." if len(sides) == 1 else ""
    words = f"{against}; the number is the average precision.{chance}{around}"
    return Chart("Precision and recall", words, _unit_figure(traces, "recall", "precision"))


def _unit_figure(traces: Sequence[Trace], x: str, y: str) -> Figure:
    axes = {"xaxis": {**_UNIT_AXIS, "hoverformat": ".3f"}, "yaxis": {**_UNIT_AXIS, "hoverformat": ".3f"}}
    return figure(traces, x, y, HEIGHT, **axes)


def _curve(truth: NDArray[np.int64], score: Array, roc: bool) -> tuple[Array, Array]:
    from sklearn.metrics import precision_recall_curve, roc_curve

    if roc:
        across, up, _ = roc_curve(truth, score)
    else:
        up, across, _ = precision_recall_curve(truth, score)
    return across, up


def _band(truth: NDArray[np.int64], score: Array, subjects: Sequence[str], roc: bool) -> list[Trace]:
    rows = []
    for counts in resample_counts(subjects, _DRAWS, 0):
        drawn = np.repeat(np.arange(len(counts)), counts)
        if 0 < truth[drawn].sum() < len(drawn):
            x, y = _curve(truth[drawn], score[drawn], roc)
            order = slice(None) if roc else slice(None, None, -1)
            rows.append(np.interp(_STEPS, x[order], y[order]))
    if len(set(subjects)) < 5 or not rows:
        return []
    low, high = np.quantile(rows, [0.025, 0.975], axis=0)
    return [band(_STEPS.tolist(), low.tolist(), high.tolist())]


def _calibration(outcomes: TaskPredictions) -> Chart:
    """Draw the accuracy in each tenth of predicted probability, with Wilson's 95 % interval."""
    kind, score = outcomes.spec.kind, outcomes.predicted
    if kind == "binary":
        stated, right, words = score[:, 1], outcomes.truth == 1, f"probability of {outcomes.spec.classes[1]}"
    elif kind == "multiclass":
        stated, right, words = score.max(1), score.argmax(1) == outcomes.truth, "probability of the predicted class"
    else:
        stated, right, words = score.ravel(), outcomes.truth.ravel() == 1, "probability of a label"
    place = np.minimum((stated * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    bins = np.flatnonzero(counts)
    hits = [int(right[place == k].sum()) for k in bins]
    at = [float(stated[place == k].mean()) for k in bins]
    share = [hit / int(counts[k]) for hit, k in zip(hits, bins, strict=True)]
    ends = [wilson(hit, int(counts[k])) for hit, k in zip(hits, bins, strict=True)]
    texts = [
        f"{counted(counts[k], 'case')} at {a:.2f}: {s:.2f} ({low:.2f} to {high:.2f})"
        for k, a, s, (low, high) in zip(bins, at, share, ends, strict=True)
    ]
    bars = {
        "type": "bar",
        "x": ((bins + 0.5) / _BINS).tolist(),
        "y": (0.12 * counts[bins] / counts.max()).tolist(),
        "width": 0.9 / _BINS,
        "marker": {"color": "--soft", "opacity": 0.3},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    whiskers = {
        "symmetric": False,
        "array": [high - s for s, (_, high) in zip(share, ends, strict=True)],
        "arrayminus": [s - low for s, (low, _) in zip(share, ends, strict=True)],
        "color": "--train",
    }
    points = dots(at, share, texts, mode="lines+markers", error_y=whiskers, line={"color": "--train"})
    drawn = _unit_figure([reference([0, 1], [0, 1]), bars, points], words, "observed share")
    caption = "A calibrated model lies on the dashed line. Bars count cases; whiskers are 95 % intervals."
    return Chart("Calibration", caption, drawn)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion (Wilson, 1927)."""
    z = 1.959964
    share, extra = hits / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def _identity(outcomes: TaskPredictions) -> Chart:
    truth, guess, unit = outcomes.truth.astype(float), outcomes.predicted, outcomes.spec.unit
    low, high = padded([*truth.tolist(), *guess.tolist()])
    traces = [reference([low, high], [low, high])]
    if len(truth) > 2 and np.ptp(truth) > 0:
        slope, offset = np.polyfit(truth, guess, 1)
        ends = [float(truth.min()), float(truth.max())]
        traces.append(line(ends, [slope * t + offset for t in ends], color=series_color(1), hoverinfo="skip"))
    traces.append(_cases(outcomes, truth, guess))
    axis = {"range": [low, high]}
    drawn = figure(
        traces, _with_unit("true", unit), _with_unit("predicted", unit), HEIGHT, xaxis=axis, yaxis=dict(axis)
    )
    caption = "One dot per case. Dashed: equal. Line: least squares; a slope below 1 means shrinkage to the mean."
    return Chart("Predicted against true", caption, drawn)


def _errors(outcomes: TaskPredictions) -> Chart:
    """Draw errors over the mean of both, with the limits of agreement (Bland and Altman, 1986)."""
    truth, guess, unit = outcomes.truth.astype(float), outcomes.predicted, outcomes.spec.unit
    error, middle = guess - truth, (guess + truth) / 2
    mean, spread = float(error.mean()), float(error.std(ddof=1)) if len(error) > 1 else 0.0
    left, right = padded(middle.tolist())
    levels = [(mean - 1.96 * spread, "--soft", "dash"), (mean, "--validation", "solid")]
    levels.append((mean + 1.96 * spread, "--soft", "dash"))
    traces = [line([left, right], [y, y], color=color, dash=dash, hoverinfo="skip") for y, color, dash in levels]
    traces.append(_cases(outcomes, middle, error))
    labels = [
        {
            "x": 1,
            "xref": "paper",
            "xanchor": "right",
            "y": y,
            "yanchor": "bottom",
            "text": f"{y:+.3g}",
            "showarrow": False,
        }
        for y, _, _ in levels
    ]
    drawn = figure(
        traces,
        _with_unit("mean of true and predicted", unit),
        _with_unit("predicted − true", unit),
        HEIGHT,
        xaxis={"range": [left, right]},
        yaxis={"zeroline": True, "zerolinecolor": "--rule"},
        annotations=labels,
    )
    return Chart("Errors", "Line: mean error. Dashed: 95 % limits of agreement (Bland and Altman).", drawn)


def _cases(outcomes: TaskPredictions, across: Array, up: Array) -> Trace:
    rows = zip(outcomes.cases, outcomes.truth, outcomes.predicted, strict=True)
    texts = [f"{name}: predicted {number(float(p))}, true {number(float(t))}" for name, t, p in rows]
    return dots(across.tolist(), up.tolist(), texts)


def _with_unit(words: str, unit: str) -> str:
    return f"{words} ({unit})" if unit else words
