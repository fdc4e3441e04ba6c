"""Charts of a fine-tuned task: ROC, precision and recall, calibration, predicted against true, errors, loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from viewalign.evaluation.predictions import TaskPredictions
from viewalign.evaluation.task_metrics import resample_subjects
from viewalign.reports.curves import Scale, dot, padded, path, ticks
from viewalign.reports.page import number

COLOURS = 6
WIDTH, HEIGHT = 430, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 12, 42
_BINS = 10
_DRAWS = 300
_STEPS = np.linspace(0, 1, 101)
Array = NDArray[np.float64]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class TaskChart:
    """A chart, its words, and names of its lines where there are several."""

    title: str
    caption: str
    svg: Markup
    legend: tuple[tuple[int, str], ...] = ()


def charts(outcomes: TaskPredictions) -> list[TaskChart]:
    """Draw what suits the kind of task; what the cases do not define (ROC of one class) is left out."""
    if outcomes.spec.kind == "regression":
        return [_identity(outcomes), _errors(outcomes)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = [_curves(outcomes, "roc"), _curves(outcomes, "precision"), _calibration(outcomes)]
    return [chart for chart in drawn if chart is not None]


def loss_chart(losses: Sequence[Sequence[float]]) -> TaskChart | None:
    """Draw each fold's training loss over its epochs."""
    lines = [[(k + 1.0, v) for k, v in enumerate(one) if math.isfinite(v)] for one in losses]
    values = [v for line in lines for _, v in line]
    if not values:
        return None
    low, high = padded(values)
    x, y = _scales((0.0, max(p[0] for line in lines for p in line)), (low, high))
    parts = [Markup('<path class="line s{}" d="{}"/>').format(k % COLOURS, path(line, x, y)) for k, line in _of(lines)]
    parts += [dot(f"s{k % COLOURS}", x(line[0][0]), y(line[0][1])) for k, line in _of(lines) if len(line) == 1]
    svg = _svg("Training loss", x, y, ("epoch", "mean loss of an epoch"), parts)
    legend = tuple((k % COLOURS, f"fold {k}") for k, _ in _of(lines)) if len(lines) > 1 else ()
    return TaskChart(
        "Training loss", "Of training cases alone, with augmentation; nothing is chosen by it.", svg, legend
    )


def _of(lines: Sequence[Points]) -> list[tuple[int, Points]]:
    return [(k, line) for k, line in enumerate(lines) if line]


def _sides(outcomes: TaskPredictions) -> list[tuple[int, str, NDArray[np.int64], Array]]:
    """Return colour, name, truth and score of each class that is judged against the rest and has both sides."""
    spec, truth, score = outcomes.spec, outcomes.truth, outcomes.predicted
    one_hot = truth if spec.kind == "multilabel" else np.eye(len(spec.classes), dtype=np.int64)[truth]
    wanted = [1] if spec.kind == "binary" else range(len(spec.classes))
    columns = [(i, spec.classes[k], one_hot[:, k], score[:, k]) for i, k in enumerate(wanted)]
    return [column for column in columns if 0 < column[2].sum() < len(column[2])]


def _curves(outcomes: TaskPredictions, which: str) -> TaskChart | None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    sides = _sides(outcomes)
    if not sides:
        return None
    x, y = _scales((0, 1), (0, 1))
    parts, legend, roc = [], [], which == "roc"
    if roc:
        parts.append(Markup('<path class="limit" d="{}"/>').format(path([(0, 0), (1, 1)], x, y)))
    for colour, name, truth, score in sides:
        if len(sides) == 1:
            if not roc:
                share = float(truth.mean())
                parts.append(Markup('<path class="limit" d="{}"/>').format(path([(0, share), (1, share)], x, y)))
            parts.append(_band(truth, score, outcomes.subjects, x, y, roc))
        parts.append(
            Markup('<path class="line s{}" d="{}"/>').format(colour % COLOURS, path(_curve(truth, score, roc), x, y))
        )
        area = roc_auc_score(truth, score) if roc else average_precision_score(truth, score)
        legend.append((colour % COLOURS, f"{name}: {area:.3f}"))
    against = f"{sides[0][1]} against the rest" if len(sides) == 1 else "Each class against the rest"
    band = " The band holds 95 % of resamplings of subjects." if len(sides) == 1 else ""
    if roc:
        svg = _svg("ROC curve", x, y, ("1 − specificity", "sensitivity"), parts)
        return TaskChart("ROC curve", f"{against}; the figure is the area. Dashed: chance.{band}", svg, tuple(legend))
    svg = _svg("Precision and recall", x, y, ("recall", "precision"), parts)
    chance = " Dashed: the share of the class." if len(sides) == 1 else ""
    words = f"{against}; the figure is the average precision.{chance}{band}"
    return TaskChart("Precision and recall", words, svg, tuple(legend))


def _curve(truth: NDArray[np.int64], score: Array, roc: bool) -> Points:
    from sklearn.metrics import precision_recall_curve, roc_curve

    if roc:
        across, up, _ = roc_curve(truth, score)
    else:
        up, across, _ = precision_recall_curve(truth, score)
    return [(float(a), float(b)) for a, b in zip(across, up, strict=True)]


def _band(truth: NDArray[np.int64], score: Array, subjects: Sequence[str], x: Scale, y: Scale, roc: bool) -> Markup:
    rows = []
    for drawn in resample_subjects(subjects, _DRAWS, 0):
        if 0 < truth[drawn].sum() < len(drawn):
            points = np.array(_curve(truth[drawn], score[drawn], roc))
            points = points if roc else points[::-1]
            rows.append(np.interp(_STEPS, points[:, 0], points[:, 1]))
    if len(set(subjects)) < 5 or not rows:
        return Markup("")
    low, high = np.quantile(rows, [0.025, 0.975], axis=0)
    around = [*zip(_STEPS.tolist(), high.tolist(), strict=True)]
    around += reversed([*zip(_STEPS.tolist(), low.tolist(), strict=True)])
    return Markup('<path class="range train" d="{}Z"/>').format(path(around, x, y))


def _calibration(outcomes: TaskPredictions) -> TaskChart:
    """Draw the share that was right in each tenth of stated probability, with Wilson's 95 % interval."""
    kind, score = outcomes.spec.kind, outcomes.predicted
    if kind == "binary":
        stated, right, words = score[:, 1], outcomes.truth == 1, f"probability of {outcomes.spec.classes[1]}"
    elif kind == "multiclass":
        stated, right, words = score.max(1), score.argmax(1) == outcomes.truth, "probability of the class that wins"
    else:
        stated, right, words = score.ravel(), outcomes.truth.ravel() == 1, "probability of a label"
    x, y = _scales((0, 1), (0, 1))
    place = np.minimum((stated * _BINS).astype(int), _BINS - 1)
    parts = [Markup('<path class="limit" d="{}"/>').format(path([(0, 0), (1, 1)], x, y))]
    counts = np.bincount(place, minlength=_BINS)
    points = []
    for k in np.flatnonzero(counts):
        tall = 0.12 * counts[k] / counts.max()
        parts.append(
            Markup('<rect class="bars" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                x(k / _BINS) + 2, y(tall), x((k + 1) / _BINS) - x(k / _BINS) - 4, y(0) - y(tall)
            )
        )
        hits, at = int(right[place == k].sum()), float(stated[place == k].mean())
        points.append((at, hits / counts[k]))
        low, high = wilson(hits, int(counts[k]))
        told = f"{counts[k]} cases at {at:.2f}: {hits / counts[k]:.2f} ({low:.2f} to {high:.2f})"
        parts.append(
            Markup(
                '<g><title>{}</title><line class="whisk" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>{}</g>'
            ).format(told, x(at), x(at), y(low), y(high), dot("s0", x(at), y(points[-1][1]), 4))
        )
    parts.insert(1, Markup('<path class="line s0" d="{}"/>').format(path(points, x, y)))
    svg = _svg("Calibration", x, y, (words, "share that was true"), parts)
    caption = (
        "On the dashed line probabilities mean what they say. Bars below count cases; whiskers are 95 % intervals."
    )
    return TaskChart("Calibration", caption, svg)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (Wilson, 1927)."""
    z = 1.959964
    share, extra = hits / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def _identity(outcomes: TaskPredictions) -> TaskChart:
    truth, guess, unit = outcomes.truth.astype(float), outcomes.predicted, outcomes.spec.unit
    low, high = padded([*truth.tolist(), *guess.tolist()])
    x, y = _scales((low, high), (low, high))
    parts = [Markup('<path class="limit" d="{}"/>').format(path([(low, low), (high, high)], x, y))]
    if len(truth) > 2 and np.ptp(truth) > 0:
        slope, offset = np.polyfit(truth, guess, 1)
        ends = [(float(t), float(slope * t + offset)) for t in (truth.min(), truth.max())]
        parts.append(Markup('<path class="line s1" d="{}"/>').format(path(ends, x, y)))
    parts += _cases(outcomes, truth, guess, x, y)
    svg = _svg("Predicted against true", x, y, (_with("true", unit), _with("predicted", unit)), parts)
    caption = (
        "A dot a case (its name under the pointer). Dashed: equal. Line: least squares; flatter is drawn to the mean."
    )
    return TaskChart("Predicted against true", caption, svg)


def _errors(outcomes: TaskPredictions) -> TaskChart:
    """Draw errors over the mean of both, with the limits of agreement (Bland and Altman, 1986)."""
    truth, guess, unit = outcomes.truth.astype(float), outcomes.predicted, outcomes.spec.unit
    error, middle = guess - truth, (guess + truth) / 2
    mean, spread = float(error.mean()), float(error.std(ddof=1)) if len(error) > 1 else 0.0
    levels = (mean - 1.96 * spread, mean, mean + 1.96 * spread)
    across = padded(middle.tolist())
    lowest, highest = min(*error, *levels, 0.0), max(*error, *levels, 0.0)
    room = 0.06 * (highest - lowest) or 1.0
    x, y = _scales(across, (lowest - room, highest + room))
    parts = [Markup('<line class="axis" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(x.start, x.stop, y(0), y(0))]
    for level, style in zip(levels, ("limit", "line s1", "limit"), strict=True):
        parts.append(
            Markup('<path class="{}" d="{}"/><text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                style, path([(across[0], level), (across[1], level)], x, y), x.stop, y(level) - 4, f"{level:+.3g}"
            )
        )
    parts += _cases(outcomes, middle, error, x, y)
    svg = _svg("Errors", x, y, (_with("mean of true and predicted", unit), _with("predicted − true", unit)), parts)
    return TaskChart("Errors", "Line: the mean error. Dashed: 95 % limits of agreement (Bland and Altman).", svg)


def _cases(outcomes: TaskPredictions, across: Array, up: Array, x: Scale, y: Scale) -> list[Markup]:
    return [
        Markup("<g><title>{}: {} for {}</title>{}</g>").format(
            name, number(float(p)), number(float(t)), dot("case", x(a), y(b), 3.2)
        )
        for name, t, p, a, b in zip(
            outcomes.cases, outcomes.truth, outcomes.predicted, across.tolist(), up.tolist(), strict=True
        )
    ]


def _with(words: str, unit: str) -> str:
    return f"{words} ({unit})" if unit else words


def _scales(across: tuple[float, float], up: tuple[float, float]) -> tuple[Scale, Scale]:
    return Scale(*across, _LEFT, WIDTH - _RIGHT), Scale(*up, HEIGHT - _BOTTOM, _TOP)


def _svg(title: str, x: Scale, y: Scale, axes: tuple[str, str], parts: Sequence[Markup]) -> Markup:
    rows = [
        Markup(
            '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
            '<text class="tick" x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
        ).format(x.start, x.stop, y(value), x.start - 6, y(value) + 4, number(value))
        for value in ticks(y.low, y.high, 5)
    ]
    columns = [
        Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            x(value), y.start + 16, number(value)
        )
        for value in ticks(x.low, x.high, 5)
    ]
    frame = Markup(
        '<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>'
        '<line class="axis" x1="{0}" x2="{0}" y1="{2}" y2="{3}"/>'
        '<text class="label" x="{4}" y="{5}" text-anchor="middle">{6}</text>'
        '<text class="label" transform="translate(12 {7}) rotate(-90)" text-anchor="middle">{8}</text>'
    ).format(
        x.start, x.stop, y.start, y.stop, (x.start + x.stop) / 2, HEIGHT - 6, axes[0], (y.start + y.stop) / 2, axes[1]
    )
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join([*rows, *columns, frame, *parts])
    )
