"""Losses as modules on plain tensors, for custom training loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from viewalign.losses.consistency import cosine_consistency, gram_consistency
from viewalign.losses.contrastive import dense_nt_xent, view_nt_xent
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


def _ones(features: Tensor) -> Tensor:
    return features.new_ones(features.shape[:2])
