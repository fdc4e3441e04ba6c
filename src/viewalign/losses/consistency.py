"""Consistency of student and teacher features at corresponding positions, and between views."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.losses.reduction import mean_per_view
from viewalign.utils.precision import at_least_float32, full_precision


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(at_least_float32(vectors), dim=-1)


@full_precision
def cosine_consistency(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of `2 - 2·cos` over positions: the consistency term of CVA (Vaish et al., arXiv:2509.13846).

    Args:
        prediction: (N, P, C) student vectors at P positions.
        target: (N, P, C) teacher vectors at the same positions; detach them if they have a gradient.
        weight: (N, P) weight of each position, at least 0.

    Returns:
        A scalar in [0, 4].

    Example:
        >>> rows_a, rows_b, weight = align(features_a, features_b, *pair.to_volume, pair.size, pair.valid)
        >>> loss = cosine_consistency(predictor(rows_a), rows_b.detach(), weight)
    """
    cosine = (_unit(prediction) * _unit(target)).sum(-1)
    return mean_per_view(2 - 2 * cosine, weight)


@full_precision
def gram_consistency(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean squared difference of the channels' Gram matrices; arguments as for `cosine_consistency`.

    The code released with CVA runs this term. A Gram matrix sums outer products of unit vectors over all positions, so
    it compares the content of the two regions but not its location: permuting positions changes nothing.
    """
    weight = at_least_float32(weight)
    total = weight.sum(1, keepdim=True)
    share = (weight * prediction.shape[1] / total.clamp(min=1e-6))[..., None]
    a, b = _unit(prediction), _unit(target)
    difference = (a * share).transpose(1, 2) @ a - (b * share).transpose(1, 2) @ b
    return mean_per_view(difference.square().mean((1, 2))[:, None], (total > 0))


@full_precision
def siamese_cosine(predictions: Tensor, targets: Tensor, *, same_views: bool) -> Tensor:
    """Return the mean of `1 - cos` between views of each image, as in SimSiam (Chen & He, arXiv:2011.10566).

    Targets are detached, which prevents collapse.

    Args:
        predictions: (V, B, C) views of B images after the predictor.
        targets: (W, B, C) views of the same images before the predictor.
        same_views: whether both are the same views, which are then not compared with themselves.

    Returns:
        A scalar in [0, 2]: the published negative cosine plus 1.
    """
    a, b = _unit(predictions), _unit(targets.detach())
    distance = 1 - torch.einsum("vbc,wbc->bvw", a, b)
    pairs = distance.new_ones(distance.shape[1:])
    if same_views:
        pairs.fill_diagonal_(0.0)
    return mean_per_view(distance, pairs[None])
