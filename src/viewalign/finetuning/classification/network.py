"""A backbone with pooling and a linear head, and its losses and outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.evaluation.embedding import Pooling
from viewalign.evaluation.settings import Pool
from viewalign.networks.backbone import Backbone
from viewalign.tasks.manifest import Target
from viewalign.tasks.spec import TaskSpec

_MIN_RELATIVE_DEVIATION = 0.1
"""Lower bound of a feature's deviation relative to the mean over features, so that constant features do not explode."""


class GlobalNetwork(nn.Module):
    """Predicts logits of classes, or a standardised value, for each image.

    The head's weights are initially 0 and its bias is `bias`, so that the first loss is that of the bias: ln K for K
    equally frequent classes, the variance of the targets (1) for a regression. Pooled features are standardised by
    `centre` and `spread` before the head: they differ little between cases, and a linear head on raw features learns
    slowly (the reason for the batch norm before the head in linear probing, He et al., arXiv:2111.06377).
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, backbone: Backbone, outputs: int, pool: Pool, dropout: float, bias: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = Pooling(backbone, pool)
        self.register_buffer("centre", torch.zeros(self.pooling.width))
        self.register_buffer("spread", torch.ones(self.pooling.width))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.pooling.width, outputs)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor(list(bias), dtype=torch.float32))

    def forward(self, images: Tensor, valid: Tensor) -> Tensor:
        """Map images (N, C, D, H, W) with valid voxels (N, 1, D, H, W) to float32 outputs (N, outputs)."""
        vector = (self.vectors(images, valid) - self.centre) / self.spread
        out: Tensor = self.head(self.dropout(vector))
        return out.float()

    def vectors(self, images: Tensor, valid: Tensor) -> Tensor:
        """Return pooled features (N, width), float32, before standardisation."""
        return self.pooling(self.backbone, images, valid)  # type: ignore[no-any-return]

    @torch.no_grad()
    def standardise(self, vectors: Tensor) -> None:
        """Set `centre` and `spread` to the statistics of training vectors (N, width)."""
        spread = vectors.float().std(0, correction=0)
        minimum = _MIN_RELATIVE_DEVIATION * spread.mean()
        self.centre.copy_(vectors.float().mean(0))
        self.spread.copy_(spread.clamp(min=minimum) if minimum > 0 else torch.ones_like(spread))

    @torch.no_grad()
    def fold_standardisation(self) -> None:
        """Move `centre` and `spread` into the head's weights; outputs do not change."""
        self.head.weight.div_(self.spread)
        self.head.bias.sub_(self.head.weight @ self.centre)
        self.centre.zero_()
        self.spread.fill_(1.0)


def initial_bias(targets: Sequence[Target], spec: TaskSpec, balanced: bool) -> list[float]:
    """Return log-odds or log-frequencies of the classes among training targets; zeros if classes are balanced."""
    if spec.kind == "regression" or balanced:
        return [0.0] * spec.outputs
    truth = np.array(targets)
    if spec.kind == "multilabel":
        frequency = (truth.sum(0) + 0.5) / (len(truth) + 1.0)
        return [float(value) for value in np.log(frequency / (1 - frequency))]
    counts = np.bincount(truth.astype(np.int64), minlength=spec.outputs) + 0.5
    return [float(value) for value in np.log(counts / counts.sum())]


def class_weights(targets: Sequence[Target], spec: TaskSpec) -> Tensor | None:
    """Return weights inverse to class frequency, of mean 1 over cases; None unless there is one true class per case."""
    if spec.kind not in ("binary", "multiclass"):
        return None
    counts = np.bincount(np.array(targets).astype(np.int64), minlength=spec.outputs)
    return torch.tensor(len(targets) / (spec.outputs * np.maximum(counts, 1)), dtype=torch.float32)


def case_losses(outputs: Tensor, targets: Tensor, spec: TaskSpec, smoothing: float) -> Tensor:
    """Return the loss of each case (N,): cross-entropy, its mean over labels, or the squared standardised error."""
    if spec.kind == "regression":
        return (outputs[:, 0] - targets).square()
    if spec.kind == "multilabel":
        soft = targets * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs, soft, reduction="none").mean(1)
    return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction="none")


def predictions_from_outputs(outputs: Tensor, spec: TaskSpec, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
    """Convert outputs to probabilities (N, K), or to values (N, 1) in the target's unit, clipped to the range."""
    if spec.kind == "regression":
        values = outputs * deviation + mean
        return values if spec.range is None else values.clamp(*spec.range)
    return outputs.sigmoid() if spec.kind == "multilabel" else outputs.softmax(1)
