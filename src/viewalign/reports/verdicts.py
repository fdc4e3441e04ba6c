"""Health verdicts of a run: a sentence for every logged health metric, and one summary.

The limits of feature metrics are in `methods.health`; those of the training process (time waiting for data, steps
skipped, volumes lost) are here. The level of a verdict is always written in words, not only shown as a colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from viewalign.methods.health import (
    LOSS_RISE,
    MEASURES,
    SKIPPED_SHARE,
    Level,
    Measure,
    loss_rise,
    too_early,
    unexpected_skips,
)
from viewalign.reports.page import number, percent
from viewalign.reports.run_data import Row, RunRecord, Series, setting
from viewalign.utils.text import counted

WAIT = Measure(
    "data_wait",
    "Time waiting for data",
    0.10,
    0.30,
    "Share of the training time in which the network waited for a batch (latest log row).",
    "Raise runtime.workers, or put the store on a fast local disk.",
)
RISE = 1.05
"""A held-out loss this many times its lowest value has risen."""

_KINDS = {"feature_std": "health", "effective_rank": "health", "alignment_error": "data"}
_RANK: dict[Level, int] = {"good": 0, "watch": 1, "bad": 2}

_SAYINGS: dict[str, dict[Level, str]] = {
    "feature_std": {
        "good": "Features differ between locations, as expected.",
        "watch": "Features of different locations are becoming similar.",
        "bad": "Features are nearly the same everywhere: the representation has collapsed.",
    },
    "effective_rank": {
        "good": "Features use many directions.",
        "watch": "Features use few directions; a partial collapse may have begun.",
        "bad": "Features use hardly any directions: the representation has collapsed.",
    },
    "cosine": {
        "good": "The two views agree at corresponding locations.",
        "watch": "The two views agree only weakly at corresponding locations.",
        "bad": "The two views do not agree at corresponding locations.",
    },
    "contrast_accuracy": {
        "good": "Images of different subjects are distinguished.",
        "watch": "Images of different subjects are distinguished only sometimes.",
        "bad": "Images of different subjects are hardly distinguished.",
    },
    "rotation_accuracy": {
        "good": "Rotations are recognised.",
        "watch": "Rotations are recognised only sometimes.",
        "bad": "Rotations are recognised no better than by guessing.",
    },
    "fusion_accuracy": {
        "good": "Fused volumes are separated.",
        "watch": "Fused volumes are separated only roughly.",
        "bad": "Fused volumes are hardly separated.",
    },
    "overlap_error": {
        "good": "Similarities of views match their overlaps.",
        "watch": "Similarities of views match their overlaps only roughly.",
        "bad": "Similarities of views hardly depend on their overlaps.",
    },
    "prototype_usage": {
        "good": "The teacher's targets use many prototypes.",
        "watch": "The teacher's targets use few prototypes; a collapse may have begun.",
        "bad": "The teacher's targets use hardly more than one prototype: they have collapsed.",
    },
    "teacher_entropy": {
        "good": "The teacher's targets distinguish prototypes.",
        "watch": "The teacher's targets are nearly uniform.",
        "bad": "The teacher's targets are uniform, so that the student learns nothing from them.",
    },
    "alignment_error": {
        "good": "Features are compared at exactly corresponding locations.",
        "watch": "The compared locations differ slightly.",
        "bad": "The compared locations do not correspond.",
    },
    "data_wait": {
        "good": "Data loading keeps up.",
        "watch": "Some time is spent waiting for data.",
        "bad": "Much of the time is spent waiting for data.",
    },
}


NOTHING = Series()


@dataclass(frozen=True)
class Finding:
    """One line of the health panel.

    Attributes:
        title: what is evaluated.
        value: the latest value, as text.
        level: good, watch or bad.
        verdict: the same in a sentence.
        means: description of the metric.
        remedy: what to try; empty if good.
        measure: the limits to draw, if any.
        series: the values over the steps to draw, if any.
    """

    title: str
    value: str
    level: Level
    verdict: str
    means: str
    remedy: str = ""
    measure: Measure | None = None
    series: Series = NOTHING


def assess(run: RunRecord) -> list[Finding]:
    """Evaluate what the run logged, features first."""
    found = [_measure(run, measure) for measure in MEASURES]
    found += [
        _loss(run),
        _held_out(run),
        _waiting(run),
        _skipped(run),
        _unreadable(run),
        _unsaved(run),
        _damaged(run),
        _small(run),
        _probe(run),
    ]
    return [finding for finding in found if finding is not None]


def overall(run: RunRecord, findings: list[Finding]) -> tuple[Level | None, str]:
    """Return the worst level and one sentence; the level is None without health metrics."""
    if not any(finding.measure for finding in findings):
        return None, "No health metrics have been logged yet."
    worst = max((finding.level for finding in findings), key=_RANK.__getitem__)
    names = _listed([finding.title for finding in findings if finding.level == worst])
    so_far = "" if run.finished else " so far"
    if worst == "good":
        return worst, f"Healthy{so_far}: every metric is in its good range."
    if worst == "watch":
        return worst, f"Worth watching{so_far}: {names}. No fault was found."
    return worst, f"Not healthy{so_far}: {names}. See the advice below."


def _listed(names: list[str]) -> str:
    names = [name[:1].lower() + name[1:] if name[1:2].islower() else name for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _measure(run: RunRecord, measure: Measure) -> Finding | None:
    series = run.series(_KINDS.get(measure.name, "train"), measure.name)
    if not len(series):
        return None
    level = measure.level(series.last)
    sentence = _SAYINGS.get(measure.name, {}).get(level, "")
    remedy = "" if level == "good" else measure.remedy
    if not math.isfinite(series.last):
        sentence = "The metric is not finite: features overflowed."
    elif too_early(measure.name, run.step, run.steps) and level != "good":
        level, sentence = "watch", f"Low, but at step {run.step:,} it is too early to conclude."
        remedy = "Check again after more steps."
    verdict = f"{sentence} {_against(measure, series.last)}".strip()
    return Finding(measure.title, number(series.last), level, verdict, measure.means, remedy, measure, series)


def _against(measure: Measure, value: float) -> str:
    """Return the position of a value relative to the limits in words."""
    if not math.isfinite(value):
        return ""
    rising = measure.good >= measure.bad
    good, bad = number(measure.good), number(measure.bad)
    return f"Good is {'at least' if rising else 'at most'} {good}; {'below' if rising else 'above'} {bad} is bad."


def _waiting(run: RunRecord) -> Finding | None:
    series = run.series("train", WAIT.name)
    if not len(series):
        return None
    level = WAIT.level(series.last)
    verdict = f"{_SAYINGS['data_wait'][level]} Good is at most 10 %; above 30 % is bad."
    return Finding(
        WAIT.title,
        percent(series.last),
        level,
        verdict,
        WAIT.means,
        "" if level == "good" else WAIT.remedy,
        WAIT,
        series,
    )


_HELD_OUT = "Total loss on subjects excluded from training, always with the same views and masks."
_CHANGING_TARGETS = (
    "A rise is normal for this method: the targets are those of its teacher, which becomes more certain."
)


def _has_changing_targets(run: RunRecord) -> bool:
    """Return whether a run predicts the output of its teacher, so that losses of different steps are not comparable."""
    return len(run.series("train", "teacher_entropy")) > 0


def _held_out(run: RunRecord) -> Finding | None:
    series = run.series("validation", "loss")
    finite = series.finite()
    if len(series) < 2 or not len(finite):
        return None
    best = min(finite.values)
    at = finite.steps[finite.values.index(best)]
    risen = not series.last <= best + (RISE - 1) * abs(best)
    if risen and _has_changing_targets(run):
        verdict = f"It was lowest, {number(best)}, at step {at:,}. {_CHANGING_TARGETS}"
        return Finding("Loss on held-out subjects", number(series.last), "good", verdict, _HELD_OUT)
    verdict = (
        f"It was lowest, {number(best)}, at step {at:,} and is higher now."
        if risen
        else f"It is at or near its lowest, {number(best)} at step {at:,}."
    )
    return Finding(
        "Loss on held-out subjects",
        number(series.last),
        "watch" if risen else "good",
        verdict,
        _HELD_OUT,
        "The best checkpoint is kept; more images, fewer steps or stronger masking reduce overfitting."
        if risen
        else "",
    )


def _loss(run: RunRecord) -> Finding | None:
    series = run.series("train", LOSS_RISE.name)
    if len(series) < 2:
        return None
    first = series.values[0]
    level = LOSS_RISE.level(loss_rise(first, series.last))
    verdict = {
        "good": f"It started at {number(first)} and has not increased.",
        "watch": f"It started at {number(first)} and has increased.",
        "bad": f"It started at {number(first)}: the training diverges.",
    }[level]
    if level == "watch" and _has_changing_targets(run):
        level, verdict = "good", f"It started at {number(first)}. {_CHANGING_TARGETS}"
    remedy = "" if level == "good" else LOSS_RISE.remedy
    return Finding(LOSS_RISE.title, number(series.last), level, verdict, LOSS_RISE.means, remedy, None, series)


def _skipped(run: RunRecord) -> Finding | None:
    if not run.step:
        return None
    count = len(run.events("skipped"))
    share = count / run.step
    fp16 = setting(run.config, "runtime.precision") == "fp16"
    unexpected = unexpected_skips(count, run.step, "fp16" if fp16 else "")
    level = SKIPPED_SHARE.level(share) if unexpected else "good"
    return Finding(
        SKIPPED_SHARE.title,
        number(count),
        level,
        f"{counted(count, 'step')} of {run.step:,} ({percent(share)})." if count else "No step was skipped.",
        SKIPPED_SHARE.means + (" With fp16, the gradient scaler skips some steps to find its scale." if fp16 else ""),
        SKIPPED_SHARE.remedy if unexpected else "",
    )


def _unreadable(run: RunRecord) -> Finding | None:
    if not run.rows:
        return None
    lost = {str(row.get("volume")) for row in run.events("unreadable")}
    total = int(run.facts.get("train_volumes", 0))
    few = len(lost) <= float(setting(run.config, "runtime.lost_share", 0.05)) * total
    level: Level = "good" if not lost else "watch" if few else "bad"
    of = f" of {total:,}" if total else ""
    return Finding(
        "Volumes that cannot be read",
        number(len(lost)),
        level,
        f"{counted(len(lost), 'volume')}{of} excluded; others were used instead." if lost else "None.",
        "Volumes of the store that failed during training, which continues with the others.",
        "Check the reasons below, and prepare the store again." if lost else "",
    )


def _unsaved(run: RunRecord) -> Finding | None:
    failures: list[Row] = run.events("checkpoint_failed")
    if not failures:
        return None
    last = int(failures[-1].get("step", 0))
    recovered = any(step > last for step in run.saved)
    return Finding(
        "Checkpoints that could not be written",
        number(len(failures)),
        "watch" if recovered else "bad",
        f"The last failure was at step {last:,}; "
        + ("a later checkpoint was written." if recovered else "none was written since."),
        "Without a new checkpoint, an interrupted run resumes from an older checkpoint.",
        "Free some space on the run's disk.",
    )


def _damaged(run: RunRecord) -> Finding | None:
    found = run.events("checkpoint_damaged")
    if not found and not run.damaged:
        return None
    return Finding(
        "Damaged checkpoints",
        number(max(len(run.damaged), 1)),
        "bad" if run.damaged else "watch",
        " ".join(run.damaged or [str(row.get("reason", "")) for row in found]),
        "A checkpoint whose files differ from those that were written; the newest undamaged one is used instead.",
        "Check the disk. --resume repeats these steps, and keeps the damaged checkpoint under another name.",
    )


def _small(run: RunRecord) -> Finding | None:
    count, total = run.facts.get("smaller_than_view"), run.facts.get("volumes")
    if not isinstance(count, int) or not isinstance(total, int) or total < 1:
        return None
    many = count > total / 2
    size = setting(run.config, "views.patch_size", [])
    shown = " × ".join(str(n) for n in size) if isinstance(size, list) else str(size)
    return Finding(
        "Volumes smaller than a view",
        f"{count:,} of {total:,}",
        "watch" if many else "good",
        (f"{percent(count / total)} of the volumes are" if count else "No volume is")
        + f" smaller than a view of {shown} voxels along some axis.",
        "Such volumes are padded. Padding is excluded from losses and metrics, but it is part of the network's input.",
        "More than half of the volumes are padded: a smaller views.patch_size reduces this." if many else "",
    )


def _probe(run: RunRecord) -> Finding | None:
    if not run.probe:
        return None
    gain, low = probe_gain(run)
    better = gain > 0 and (low is None or low > 0)
    words = "beat" if low is not None else "are ahead of"
    return Finding(
        "Frozen-feature probe",
        f"{gain:+.3f}",
        "good" if better else "watch",
        f"The pretrained features {words if better else 'do not clearly beat'} those of the same network untrained.",
        "Pretrained minus untrained, in the probe's metric; details are in the section below.",
        "" if better else "Train longer, on more images, or on images more similar to those of the task.",
    )


def probe_gain(run: RunRecord) -> tuple[float, float | None]:
    """Return pretrained minus untrained, and the lower end of its interval if there is one."""
    gain = run.probe.get("gain")
    interval = gain.get("interval") if isinstance(gain, dict) else None
    low = float(interval[0]) if isinstance(interval, list) and interval else None
    return float(run.probe["pretrained"]) - float(run.probe["untrained"]), low
