"""Dice and cross-entropy over the voxels that count."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.losses.reduction import mean_per_view
from viewalign.utils.precision import at_least_float32, full_precision


@full_precision
def cross_entropy(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Return the mean cross-entropy; arguments as for `soft_dice`."""
    return mean_per_view(F.cross_entropy(at_least_float32(logits), labels, reduction="none")[:, None], counts)


@full_precision
def soft_dice(logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Return 1 - the mean soft Dice over classes and images (Milletari et al., arXiv:1606.04797, without squares).

    A class that is neither in an image nor predicted for it has a Dice of 1.

    Args:
        logits: (N, K, D, H, W).
        labels: (N, D, H, W) int64 in [0, K).
        counts: (N, 1, D, H, W) bool.

    Returns:
        A scalar in [0, 1].
    """
    share = torch.softmax(at_least_float32(logits), dim=1) * counts
    classes = torch.arange(logits.shape[1], device=labels.device).view(-1, 1, 1, 1)
    truth = (labels[:, None] == classes) & counts
    both = (share * truth).sum((2, 3, 4))
    total = share.sum((2, 3, 4)) + truth.sum((2, 3, 4))
    return 1 - ((2 * both + 1e-5) / (total + 1e-5)).mean()
