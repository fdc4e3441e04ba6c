"""Health measures of a run: collapse and variance of features, and accuracy of pretext tasks.

Each measure has two thresholds, between good and watch, and between watch and bad. They are rules of thumb from runs
of this package (docs/health.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from viewalign.utils.precision import full_precision

Level = Literal["good", "watch", "bad"]


@dataclass(frozen=True)
class Measure:
    """A health measure.

    Attributes:
        name: key in the log.
        title: name in the report.
        good, bad: thresholds of the two levels; if `good` is the larger one, high values are good.
        means: description, in a sentence.
        remedy: what to try if it is not good.
    """

    name: str
    title: str
    good: float
    bad: float
    means: str
    remedy: str

    def level(self, value: float) -> Level:
        """Return the level of a value."""
        if self.good >= self.bad:
            return "good" if value >= self.good else "watch" if value >= self.bad else "bad"
        return "good" if value <= self.good else "watch" if value <= self.bad else "bad"


MEASURES = (
    Measure(
        "feature_std",
        "Feature standard deviation",
        0.5,
        0.2,
        "Spread of the encoder's normalised features over positions: 1 if they are spread evenly, 0 if all are equal.",
        "Lower optim.lr; with CVA also raise objectives.reconstruction_weight.",
    ),
    Measure(
        "effective_rank",
        "Effective rank",
        10.0,
        4.0,
        "Number of directions that the encoder's features use (exponential of the entropy of their spectrum).",
        "Lower optim.lr or lengthen optim.warmup_steps; with CVA also raise objectives.contrastive_weight.",
    ),
    Measure(
        "cosine",
        "Teacher–student cosine at shared positions",
        0.3,
        0.05,
        "Similarity of the student's prediction and the teacher's features at the same position in two views.",
        "It is low early in training; if it stays low, inspect the views and raise objectives.consistency_weight.",
    ),
    Measure(
        "contrast_accuracy",
        "NT-Xent accuracy",
        0.5,
        0.1,
        "How often the other view of an image is more similar than all views of other subjects.",
        "Train longer, or use a larger batch.",
    ),
    Measure(
        "rotation_accuracy",
        "Rotation accuracy",
        0.7,
        0.3,
        "How often the rotation of a view is predicted correctly; chance is 0.25.",
        "Train longer; with views.mirror=true rotations cannot be distinguished.",
    ),
    Measure(
        "fusion_accuracy",
        "Fusion accuracy",
        0.6,
        0.3,
        "Share of the voxels of two fused volumes in which the fraction of the first is predicted correctly.",
        "Train longer, or lower optim.lr.",
    ),
    Measure(
        "overlap_error",
        "Overlap error",
        0.1,
        0.3,
        "Mean difference between the similarity of two views and their overlap.",
        "Train longer, and check that the views lie inside the body.",
    ),
    Measure(
        "prototype_usage",
        "Prototype usage",
        0.3,
        0.1,
        "Effective number of prototypes in a batch's targets of whole views, relative to the largest possible one.",
        "Use a larger batch or pretext.targets=sinkhorn, or lower optim.lr.",
    ),
    Measure(
        "teacher_entropy",
        "Teacher entropy",
        0.9,
        0.99,
        "Mean entropy of the teacher's targets of whole views: 0 if they are certain, 1 if they are uniform.",
        "It is high early in training; if it stays high, lower pretext.teacher_temperature or optim.lr.",
    ),
    Measure(
        "alignment_error",
        "Alignment error on a ramp (voxels)",
        1e-3,
        1e-2,
        "Distance of corresponding positions when coordinates are aligned instead of features.",
        "Expected with geometry=latentcampus; otherwise this is a bug: please report it with the recipe.",
    ),
)

EARLY_STEPS, EARLY_SHARE = 100, 0.05
"""Before the later of these two, measures that improve slowly are not evaluated yet."""
_LEARNT_SLOWLY = {
    *("cosine", "contrast_accuracy", "rotation_accuracy", "fusion_accuracy", "overlap_error"),
    *("prototype_usage", "teacher_entropy"),
}


def too_early(name: str, step: int, steps: int) -> bool:
    """Return whether a measure cannot be evaluated yet at a step of a run of `steps`, because it improves slowly."""
    return name in _LEARNT_SLOWLY and step < max(EARLY_STEPS, EARLY_SHARE * steps)


LOSS_RISE = Measure(
    "loss",
    "Training loss",
    1.5,
    10.0,
    "The latest mean of the training loss, divided by the first.",
    "Lower optim.lr, or lengthen optim.warmup_steps.",
)
SKIPPED_SHARE = Measure(
    "skipped",
    "Steps skipped",
    0.0,
    0.01,
    "Steps whose loss or gradient was not finite; they do not update the weights.",
    "Inspect the volumes named in the log, lower optim.lr, or set runtime.precision=fp32.",
)
_SCALE_SEARCH, _SCALE_GROWTH = 16, 2000
"""torch's gradient scaler starts at 2^16, is halved by a step that overflows, and doubled after 2,000 that do not."""


def unexpected_skips(skipped: int, steps: int, precision: str) -> int:
    """Return the number of skipped steps without those in which fp16's gradient scaler searches for its scale."""
    expected = _SCALE_SEARCH + steps // _SCALE_GROWTH if precision == "fp16" else 0
    return max(0, skipped - expected)


def loss_rise(first: float, latest: float) -> float:
    """Return a training loss relative to its first value, for `LOSS_RISE`; infinity if it is not finite.

    A loss that may be negative is shifted by |first|.
    """
    return 1 + (latest - first) / max(abs(first), 1e-12) if math.isfinite(latest) else math.inf


def sentence(measure: Measure, value: float) -> str:
    """Return a message for a measure that is not good, with advice."""
    return f"{measure.title} is {value:.3g} ({measure.level(value)}). {measure.means} {measure.remedy}"


@full_precision
def feature_std(rows: Tensor) -> Tensor:
    """Return √C times the standard deviation per channel of normalised rows (N, C): 1 if spread evenly, 0 on collapse.

    The measure of SimSiam (Chen & He, arXiv:2011.10566), about the mean direction.
    """
    unit = torch.nn.functional.normalize(rows.float(), dim=-1)
    return unit.var(0, unbiased=False).sum().clamp(min=0).sqrt()


@full_precision
def effective_rank(rows: Tensor, limit: int = 512) -> Tensor:
    """Return the effective rank of centred rows (N, C) (Roy & Vetterli, 2007), from at most `limit` of them.

    The exponential of the entropy of the normalised singular values: k if k directions are used equally.
    """
    rows = rows[:: max(1, rows.shape[0] // limit)][:limit].double()
    rows = rows - rows.mean(0)
    singular = torch.linalg.svdvals(rows)
    share = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


def measure(features: dict[str, Tensor]) -> dict[str, float]:
    """Return the health measures of a step's features; rows with non-finite values are ignored."""
    out = {}
    names = {"encoder": ("feature_std", "effective_rank"), "projected": ("projected_std", "projected_rank")}
    for name, (spread, rank) in names.items():
        rows = features.get(name)
        rows = None if rows is None else rows[torch.isfinite(rows).all(1)]
        if rows is not None and rows.shape[0] > 1:
            out[spread], out[rank] = float(feature_std(rows)), float(effective_rank(rows))
    return out
