"""The one way in which this package averages over what counts."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_per_view(values: Tensor, weight: Tensor) -> Tensor:
    """Return the plain mean over views of each view's weighted mean; a view of no weight counts as 0.

    Args:
        values: (N, ...) one row a view.
        weight: broadcastable to `values`, not negative.
    """
    weight = weight.to(values.dtype).expand_as(values).flatten(1)
    total = weight.sum(1)
    sums = (values.flatten(1) * weight).sum(1)
    return torch.where(total > 0, sums / total.clamp(min=torch.finfo(values.dtype).tiny), 0.0).mean()
