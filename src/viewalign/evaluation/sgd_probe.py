"""Linear heads trained by SGD on fixed features, with many learning rates at once: the linear probe of FOMO26.

Features are used as they are, without standardisation, so that their scale matters. Heads start from weights of
N(0, 0.01²) and zero biases; the loss is the cross entropy without weights of classes; the learning rate decreases along
half a cosine to 0. The organisers validate every five epochs, but each validation replaces the choice of the head, so
that only the last one is made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from viewalign.evaluation.fomo_metrics import ovr_auroc
from viewalign.utils.rng import make_rng

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
EPOCHS, BATCH, MOMENTUM, DEVIATION = 20, 64, 0.9, 0.01

Floats = NDArray[np.floating]
Classes = NDArray[np.integer]


@dataclass(frozen=True)
class SgdHead:
    """A trained linear head.

    Attributes:
        rate: its learning rate.
        weight: (K, C).
        bias: (K,).
        auroc: macro one-versus-rest AUROC on the validation cases.
    """

    rate: float
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    auroc: float

    def probabilities(self, features: Floats) -> NDArray[np.float64]:
        """Return softmax probabilities (N, K) of features (N, C)."""
        logits = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def fit_heads(
    features: Floats,
    classes: Classes,
    count: int,
    validation: tuple[Floats, Classes],
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> list[SgdHead]:
    """Train a head for each learning rate on the sum of their losses, with the same order of cases.

    Args:
        features: (N, C) of the training cases.
        classes: (N,) from 0.
        count: number of classes.
        validation: features and classes of the validation cases.
        rates: learning rates at the start.
        seed: of initial weights and order.
    """
    rng = make_rng(seed, "sgd probe")
    inputs = torch.from_numpy(np.asarray(features, dtype=np.float32))
    targets = torch.from_numpy(np.asarray(classes, dtype=np.int64))
    heads = [_new_head(inputs.shape[1], count, rng) for _ in rates]
    groups = [{"params": head.parameters(), "lr": rate} for head, rate in zip(heads, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    steps = EPOCHS * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.from_numpy(rng.permutation(len(inputs))).split(BATCH):
            optimizer.zero_grad()
            losses = [F.cross_entropy(head(inputs[rows]), targets[rows]) for head in heads]
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return [_trained(head, rate, validation) for head, rate in zip(heads, rates, strict=True)]


def best_head(heads: Sequence[SgdHead]) -> SgdHead:
    """Return the head with the highest validation AUROC; of equal ones that with the lowest rate."""
    return max(heads, key=lambda head: (-np.inf if np.isnan(head.auroc) else head.auroc, -head.rate))


def _new_head(width: int, count: int, rng: np.random.Generator) -> nn.Linear:
    head = nn.Linear(width, count)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(rng.normal(0.0, DEVIATION, (count, width)).astype(np.float32)))
        head.bias.zero_()
    return head


def _trained(head: nn.Linear, rate: float, validation: tuple[Floats, Classes]) -> SgdHead:
    trained = SgdHead(rate, head.weight.detach().numpy(), head.bias.detach().numpy(), float("nan"))
    auroc = ovr_auroc(validation[1], trained.probabilities(validation[0]))
    return replace(trained, auroc=auroc)
