"""How far a student's features lie from the teacher's of the same places."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from viewalign.objectives.means import mean_per_view
from viewalign.precision import full_precision


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
