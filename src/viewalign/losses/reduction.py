"""The weighted mean of all losses."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_per_view(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over views of each view's weighted mean; a view of zero weight counts as 0.

    Averaging over views last gives the same result on one and on several processes.

    Args:
        values: (N, ...) one row per view.
        weight: broadcastable to `values`, at least 0.
    """
    weight = weight.to(values.dtype).expand_as(values).flatten(1)
    total = weight.sum(1)
    sums = (values.flatten(1) * weight).sum(1)
    return torch.where(total > 0, sums / total.clamp(min=torch.finfo(values.dtype).tiny), 0.0).mean()
