"""One vector an image, from the encoder's own maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from viewalign.methods.dense import grid_of
from viewalign.precision import full_precision, raised
from viewalign.views.alignment import valid_share


@full_precision
def pooled(maps: Sequence[Tensor], valid: Tensor) -> Tensor:
    """Return one vector (N, ΣC) an image: the mean of each map over its valid cells, concatenated; float32.

    Args:
        maps: of an encoder, (N, C, d, h, w) each.
        valid: (N, 1, D, H, W) of the views they were made from.
    """
    columns = []
    for one in maps:
        share = valid_share(valid, grid_of(one)).to(torch.promote_types(one.dtype, torch.float32))
        weight = share / share.sum((2, 3, 4), keepdim=True).clamp(min=1e-6)
        columns.append((raised(one) * weight).sum((2, 3, 4)))
    return torch.cat(columns, dim=1)
