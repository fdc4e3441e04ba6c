"""How far a student's features lie from the teacher's of the same places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.losses.reduction import mean_per_view
from viewalign.utils.precision import full_precision


@full_precision
def cosine_consistency(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of `2 - 2·cos` over places: the consistency term of CVA (arXiv:2509.13846).

    Args:
        prediction: (N, P, C) the student's vectors at P places.
        target: (N, P, C) the teacher's vectors at the same places; gradients are the caller's to stop.
        weight: (N, P) how much each place counts.

    Returns:
        A scalar in [0, 4].
    """
    cosine = (F.normalize(prediction, dim=-1) * F.normalize(target, dim=-1)).sum(-1)
    return mean_per_view(2 - 2 * cosine, weight)


@full_precision
def gram_consistency(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean squared difference of the channels' Gram matrices over places.

    This is the term that the code released with the paper runs under its command. A Gram matrix sums the outer products
    of unit vectors over all places, so it compares what both regions hold and not where: shuffling the places of one
    side changes nothing.

    Args:
        prediction, target, weight: as for `cosine_consistency`.
    """
    places = prediction.shape[1]
    total = weight.sum(1, keepdim=True)
    share = (weight * places / total.clamp(min=1e-6))[..., None]
    a, b = F.normalize(prediction, dim=-1), F.normalize(target, dim=-1)
    difference = (a * share).transpose(1, 2) @ a - (b * share).transpose(1, 2) @ b
    return mean_per_view(difference.square().mean((1, 2))[:, None], (total > 0))


@full_precision
def siamese_cosine(predictions: Tensor, targets: Tensor, *, same_views: bool) -> Tensor:
    """Return the mean of `1 - cos` between views of each image, as SimSiam has it (Chen & He, arXiv:2011.10566).

    Targets take no gradient: with it, all vectors might become alike.

    Args:
        predictions: (V, B, C) of an image's views after the predictor.
        targets: (W, B, C) of its views before it.
        same_views: whether both are of the same views, so that a view is not compared with itself.

    Returns:
        A scalar in [0, 2]: the published negative cosine plus 1.
    """
    mine, theirs = F.normalize(predictions, dim=-1), F.normalize(targets.detach(), dim=-1)
    distance = 1 - torch.einsum("vbc,wbc->bvw", mine, theirs)
    pairs = distance.new_ones(distance.shape[1:])
    if same_views:
        pairs.fill_diagonal_(0.0)
    return mean_per_view(distance, pairs[None])
