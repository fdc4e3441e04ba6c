"""Means over the valid part of feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.precision import full_precision
from viewalign.utils.shapes import Size, spatial_size


def valid_fraction(valid: Tensor, grid: Size) -> Tensor:
    """Return the valid fraction of each grid cell: bool (N, 1, D, H, W) to float32 (N, 1, d, h, w) in [0, 1]."""
    return F.adaptive_avg_pool3d(valid.float(), grid)


@full_precision
def masked_mean(maps: Sequence[Tensor], valid: Tensor) -> Tensor:
    """Average each map over its cells, weighted by their valid fraction, and concatenate the channels.

    Products stay in the precision of a map and are summed in float32: a float32 copy of a map at image resolution would
    need as much memory as the network's own activations.

    Args:
        maps: (N, C, d, h, w) each.
        valid: (N, 1, D, H, W) bool, the valid voxels of the images; an image without any gives zeros.

    Returns:
        (N, ΣC), float32 or float64.
    """
    columns = []
    for features in maps:
        dtype = torch.promote_types(features.dtype, torch.float32)
        # Rounded before they are summed, so that the weights stay in proportion to each other.
        weight = valid_fraction(valid, spatial_size(features)).to(features.dtype)
        total = weight.sum((2, 3, 4), dtype=dtype).clamp(min=1e-6)
        columns.append((features * weight).sum((2, 3, 4), dtype=dtype) / total)
    return torch.cat(columns, dim=1)
