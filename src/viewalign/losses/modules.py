"""Losses as modules on plain tensors, for custom training loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viewalign.losses.consistency import cosine_consistency, gram_consistency
from viewalign.losses.contrastive import dense_nt_xent, view_nt_xent
from viewalign.losses.distillation import gram_anchoring, koleo, token_cross_entropy, view_cross_entropy
from viewalign.losses.reconstruction import masked_huber, masked_mse


class NTXentLoss(nn.Module):
    """NT-Xent between two views of each image, as in SimCLR (arXiv:2002.05709).

    The positive of a vector is the other view of its image; its negatives are the views of other subjects, over all
    processes of `torch.distributed`.

    Args:
        temperature: divides the cosine similarity.

    Example:
        ```python
        loss = viewalign.losses.NTXentLoss(temperature=0.5)
        value = loss(torch.randn(8, 128), torch.randn(8, 128))
        ```
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor, subject: Tensor | None = None) -> Tensor:
        """Return a scalar.

        Args:
            first: (B, C) embeddings of one view of B images.
            second: (B, C) of another view of them.
            subject: (B,) integers, equal for images of one subject, which are not negatives of each other; by default
                each image is a separate subject.
        """
        if subject is None:
            subject = torch.arange(len(first), device=first.device)
        return view_nt_xent(torch.stack([first, second]), subject, self.temperature).loss


class CosineConsistencyLoss(nn.Module):
    """Consistency of Consistent View Alignment: `2 - 2·cos` of features at the same positions (arXiv:2509.13846).

    Example:
        ```python
        loss = viewalign.losses.CosineConsistencyLoss()
        value = loss(torch.randn(2, 343, 64), torch.randn(2, 343, 64), torch.ones(2, 343))
        ```
    """

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return a scalar in [0, 4].

        Args:
            prediction: (N, P, C) the student's features at P positions of N pairs of views.
            target: (N, P, C) the teacher's at the same positions, detached by the caller.
            weight: (N, P) weight of each position; equal by default.
        """
        return cosine_consistency(prediction, target, _ones(prediction) if weight is None else weight)


class GramConsistencyLoss(nn.Module):
    """Mean squared difference of the Gram matrices of features; it does not depend on the positions.

    Example:
        ```python
        loss = viewalign.losses.GramConsistencyLoss()
        value = loss(torch.randn(2, 343, 64), torch.randn(2, 343, 64))
        ```
    """

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return a scalar; arguments as for `CosineConsistencyLoss`."""
        return gram_consistency(prediction, target, _ones(prediction) if weight is None else weight)


class DenseNTXentLoss(nn.Module):
    """NT-Xent over positions, the consistency of C-CVA (arXiv:2509.13846).

    Args:
        temperature: divides the cosine similarity.
        over_batch: whether positions of other pairs are negatives too, as published, or those of the same pair only.

    Example:
        ```python
        loss = viewalign.losses.DenseNTXentLoss()
        value = loss(torch.randn(2, 343, 64), torch.randn(2, 343, 64))
        ```
    """

    def __init__(self, temperature: float = 0.5, over_batch: bool = False) -> None:
        super().__init__()
        self.temperature, self.over_batch = temperature, over_batch

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return a scalar; arguments as for `CosineConsistencyLoss`."""
        counts = _ones(prediction) if weight is None else weight
        return dense_nt_xent(prediction, target, counts, self.temperature, self.over_batch)


class MaskedReconstructionLoss(nn.Module):
    """Huber loss, or mean squared error, over selected voxels.

    Args:
        delta: where the Huber loss changes from squared to linear; None for the mean squared error.

    Example:
        ```python
        loss = viewalign.losses.MaskedReconstructionLoss()
        hidden = torch.rand(2, 1, 32, 32, 32) < 0.75
        value = loss(torch.randn(2, 1, 32, 32, 32), torch.randn(2, 1, 32, 32, 32), hidden)
        ```
    """

    def __init__(self, delta: float | None = 1.0) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, prediction: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        """Return a scalar.

        Args:
            prediction: (N, C, D, H, W).
            target: (N, C, D, H, W).
            counts: (N, 1, D, H, W) bool, the voxels that are used.
        """
        if self.delta is None:
            return masked_mse(prediction, target, counts)
        return masked_huber(prediction, target, counts, self.delta)


class DINOLoss(nn.Module):
    """DINO: every view of an image predicts the teacher's targets of its other global views (arXiv:2104.14294).

    Args:
        temperature: of the student.

    Example:
        ```python
        loss = viewalign.losses.DINOLoss(temperature=0.1)
        targets = torch.softmax(torch.randn(2, 4, 64) / 0.04, dim=-1)
        value = loss(torch.randn(8, 4, 64), targets)
        ```
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return a scalar.

        Args:
            student: (V, B, K) logits of V views of B images, global views first.
            targets: (W, B, K) probabilities of the W global views, for example from `PrototypeTargets`.
            weight: (V, B) weight of each student view; equal by default.
        """
        return view_cross_entropy(student, targets, self.temperature, weight)


class IBOTLoss(nn.Module):
    """iBOT: the cross-entropy between the teacher's targets and the student's logits at positions (arXiv:2111.07832).

    Args:
        temperature: of the student.

    Example:
        ```python
        loss = viewalign.losses.IBOTLoss(temperature=0.1)
        targets = torch.softmax(torch.randn(2, 20, 64) / 0.04, dim=-1)
        value = loss(torch.randn(2, 20, 64), targets)
        ```
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return a scalar.

        Args:
            student: (N, P, K) logits at P positions of N views.
            targets: (N, P, K) probabilities at the same positions.
            weight: (N, P) weight of each position; equal by default.
        """
        return token_cross_entropy(student, targets, _ones(student) if weight is None else weight, self.temperature)


class KoLeoLoss(nn.Module):
    """KoLeo: minus the mean logarithm of the distance to the nearest other vector (arXiv:1806.03198, 2304.07193).

    Example:
        ```python
        loss = viewalign.losses.KoLeoLoss()
        value = loss(torch.randn(8, 64))
        ```
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Return a scalar for vectors (N, C) of different images, compared over all processes."""
        return koleo(rows)


class GramAnchoringLoss(nn.Module):
    """Gram anchoring of DINOv3: cosines between positions stay those of an earlier teacher (arXiv:2508.10104).

    Example:
        ```python
        loss = viewalign.losses.GramAnchoringLoss()
        value = loss(torch.randn(2, 64, 32), torch.randn(2, 64, 32))
        ```
    """

    def forward(self, student: Tensor, anchor: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return a scalar for features (N, P, C) at P positions of N views; weights (N, P) are equal by default."""
        return gram_anchoring(student, anchor, _ones(student) if weight is None else weight)


def _ones(features: Tensor) -> Tensor:
    return features.new_ones(features.shape[:2])
