"""Is the run healthy? Figures of the features, and what they mean in plain words.

Each figure has two limits: on its good side all is well, past the second the run has a fault. They are rules of thumb,
measured on runs of this package; docs/health.md says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from viewalign.utils.precision import full_precision

Level = Literal["good", "watch", "bad"]


@dataclass(frozen=True)
class Measure:
    """A figure of the health panel.

    Attributes:
        name: its key in the log.
        title: what a person calls it.
        good: the value from which on it is good.
        bad: the value beyond which it is bad.
        means: what the figure is, in a sentence.
        remedy: what to try when it is not good.
    """

    name: str
    title: str
    good: float
    bad: float
    means: str
    remedy: str

    def level(self, value: float) -> Level:
        """Judge a value."""
        if self.good >= self.bad:
            return "good" if value >= self.good else "watch" if value >= self.bad else "bad"
        return "good" if value <= self.good else "watch" if value <= self.bad else "bad"


MEASURES = (
    Measure(
        "feature_std",
        "Feature standard deviation",
        0.5,
        0.2,
        "How far encoder features of different places spread over the sphere: 1 when evenly, 0 when all are equal.",
        "Lower optim.lr, or raise objectives.reconstruction_weight.",
    ),
    Measure(
        "effective_rank",
        "Effective rank",
        10.0,
        4.0,
        "How many directions the encoder's features really use (exponential of the entropy of their spectrum).",
        "Lower optim.lr, lengthen optim.warmup, or raise objectives.contrastive_weight.",
    ),
    Measure(
        "cosine",
        "Teacher–student cosine at shared places",
        0.3,
        0.05,
        "How alike the student's prediction and the teacher's features are at the same place in two views.",
        "Early on it is low; if it stays there, look at the views and raise objectives.consistency_weight.",
    ),
    Measure(
        "contrast_accuracy",
        "NT-Xent accuracy",
        0.5,
        0.1,
        "How often an image's other view is told from all views of other subjects.",
        "Train longer, or take a larger batch.",
    ),
    Measure(
        "rotation_accuracy",
        "Rotations told",
        0.7,
        0.3,
        "How often the quarter turn of a view is told; a guess is right one time in four.",
        "Train longer; with views.mirror=true turns cannot be told apart.",
    ),
    Measure(
        "fusion_accuracy",
        "Fused voxels told",
        0.6,
        0.3,
        "In how many voxels of two fused volumes the share of the first is told.",
        "Train longer, or lower optim.lr.",
    ),
    Measure(
        "overlap_error",
        "Error of told overlaps",
        0.1,
        0.3,
        "How far the similarity of two views lies from the share that they overlap.",
        "Train longer; look at the views: those outside the body say nothing.",
    ),
    Measure(
        "alignment_error",
        "Alignment error on a ramp (voxels)",
        1e-3,
        1e-2,
        "Coordinates instead of features, sent through views and alignment at the start: how far they end up apart.",
        "Expected with geometry=latentcampus; else this is a fault of the program: please report it with the recipe.",
    ),
)


def sentence(measure: Measure, value: float) -> str:
    """Say what a figure that is not good means, and what to try."""
    return f"{measure.title} is {value:.3g} ({measure.level(value)}). {measure.means} {measure.remedy}"


@full_precision
def feature_std(rows: Tensor) -> Tensor:
    """Return the mean deviation of unit vectors (N, C) per channel, times √C: 1 for an even spread, 0 for collapse.

    The measure of SimSiam (Chen & He, arXiv:2011.10566), taken about the mean direction.
    """
    unit = torch.nn.functional.normalize(rows.float(), dim=-1)
    return unit.var(0, unbiased=False).sum().clamp(min=0).sqrt()


@full_precision
def effective_rank(rows: Tensor, limit: int = 512) -> Tensor:
    """Return the effective rank of centred rows (N, C) (Roy & Vetterli, 2007), from at most `limit` of them.

    It is the exponential of the entropy of the normalised singular values: k when k directions are used alike.
    """
    rows = rows[:: max(1, rows.shape[0] // limit)][:limit].double()
    rows = rows - rows.mean(0)
    singular = torch.linalg.svdvals(rows)
    share = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


def measure(features: dict[str, Tensor]) -> dict[str, float]:
    """Work out the figures that features alone give; rows that are not finite are left out."""
    out = {}
    names = {"encoder": ("feature_std", "effective_rank"), "projected": ("projected_std", "projected_rank")}
    for name, (spread, rank) in names.items():
        rows = features.get(name)
        rows = None if rows is None else rows[torch.isfinite(rows).all(1)]
        if rows is not None and rows.shape[0] > 1:
            out[spread], out[rank] = float(feature_std(rows)), float(effective_rank(rows))
    return out
