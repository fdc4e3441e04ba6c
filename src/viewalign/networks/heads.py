"""Projector and predictor, with batch normalisation over all processes and without running averages."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.utils.distributed import sum_over_processes
from viewalign.utils.precision import at_least_float32, full_precision

Norm = Literal["batch", "layer"]


class WeightedBatchNorm(nn.Module):
    """Batch normalisation of rows (N, C) by weighted statistics of the global batch, in float32.

    It has no running averages, so that student, teacher, training and validation are normalised in the same way. Rows
    of weight 0 (padding) do not contribute. Statistics are summed over processes with gradients: several processes give
    the same result as one process with all rows.

    Args:
        width: C.
        affine: whether a learned scale and shift follow.
    """

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    @full_precision
    def forward(self, rows: Tensor, row_weight: Tensor) -> Tensor:
        """Normalise rows (N, C) of weights (N,)."""
        rows = at_least_float32(rows)
        row_weight = row_weight.to(rows.dtype)[:, None]
        total = sum_over_processes(torch.cat([(rows * row_weight).sum(0), row_weight.sum(0)]))
        count = total[-1].clamp(min=1e-6)
        mean = total[:-1] / count
        centred = rows - mean
        variance = sum_over_processes((centred.square() * row_weight).sum(0)) / count
        out = centred * torch.rsqrt(variance + 1e-5)
        return out if self.weight is None or self.bias is None else out * self.weight + self.bias


class MLP(nn.Module):
    """Linear layers with normalisation and SiLU between them.

    Args:
        widths: input width, then the width of each layer.
        norm: "batch" (`WeightedBatchNorm`) or "layer", which does not depend on the batch.
        last_norm: whether the output is normalised too, without scale and shift.
    """

    def __init__(self, widths: tuple[int, ...], norm: Norm, last_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norm = norm
        norms: list[nn.Module] = [self._make_norm(width, True) for width in widths[1:-1]]
        self.norms = nn.ModuleList([*norms, self._make_norm(widths[-1], False)] if last_norm else norms)

    def _make_norm(self, width: int, affine: bool) -> nn.Module:
        if self.norm == "batch":
            return WeightedBatchNorm(width, affine)
        return nn.LayerNorm(width, elementwise_affine=affine)

    def forward(self, rows: Tensor, row_weight: Tensor) -> Tensor:
        """Map rows (N, C) whose weights in the statistics are (N,); returns float32 or float64."""
        for number, layer in enumerate(self.layers):
            rows = layer(rows)
            if number < len(self.norms):
                rows, norm = at_least_float32(rows), self.norms[number]
                rows = norm(rows, row_weight) if self.norm == "batch" else norm(rows)
            if number < len(self.layers) - 1:
                rows = F.silu(rows)
        return at_least_float32(rows)


@full_precision
def embed(pooled: Tensor, head: Callable[[Tensor, Tensor], Tensor], weight: Tensor | None = None) -> Tensor:
    """Pass pooled features (V, B, C) through a head in float32 or float64, outside autocast.

    Pooled vectors are few and differ little: rounding to bfloat16 would remove much of their differences, which batch
    normalisation magnifies.

    Args:
        pooled: any floating-point type.
        head: maps rows (N, C) and their weights (N,).
        weight: (V, B) weight of each vector in the statistics; None means equal weights.
    """
    rows = at_least_float32(pooled.flatten(0, 1))
    row_weight = rows.new_ones(rows.shape[0]) if weight is None else weight.flatten()
    out: Tensor = head(rows, row_weight).unflatten(0, pooled.shape[:2])
    return out


def projector(inputs: int, width: int, norm: Norm) -> MLP:
    """Build the projector: three layers of `width`."""
    return MLP((inputs, width, width, width), norm, last_norm=True)


def predictor(width: int, hidden: int, norm: Norm) -> MLP:
    """Build the predictor of the student: from `width` to `hidden` and back."""
    return MLP((width, hidden, width), norm, last_norm=False)
