"""Averages of feature maps over the cells that count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from viewalign.precision import full_precision


@full_precision
def mean_vectors(maps: Sequence[Tensor], shares: Sequence[Tensor]) -> Tensor:
    """Average each map over its cells, and concatenate.

    Products with the shares stay in a map's own precision and are added up in float32: at the resolution of the image,
    maps in float32 would take as much memory as the network's own.

    Args:
        maps: (N, C, d, h, w) each.
        shares: (N, 1, d, h, w) each, how much a cell counts; an image of which none does gives zeros.

    Returns:
        (N, ΣC), float32 or better.
    """
    columns = []
    for one, share in zip(maps, shares, strict=True):
        precise = torch.promote_types(one.dtype, torch.float32)
        # Shares are rounded before they are added up, so that weights stay in proportion to each other.
        weight = share.to(one.dtype)
        total = weight.sum((2, 3, 4), dtype=precise).clamp(min=1e-6)
        columns.append((one * weight).sum((2, 3, 4), dtype=precise) / total)
    return torch.cat(columns, dim=1)
