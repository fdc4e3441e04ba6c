"""Projector and predictor, with a BatchNorm that is the same for student, teacher, one process and many."""

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


class RowNorm(nn.Module):
    """Normalise rows (N, C) by the statistics of the batch, over all processes, in float32.

    There are no running averages: student and teacher, training and validation are normalised by the same rule. Rows
    of weight 0 (padding) count in no statistic. Sums are reduced over processes with gradients, so that two processes
    equal one with their rows together.

    Args:
        width: C.
        affine: whether a learned scale and shift follow.
    """

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    @full_precision
    def forward(self, rows: Tensor, share: Tensor) -> Tensor:
        """Normalise rows (N, C) whose weights are `share` (N,)."""
        rows = at_least_float32(rows)
        share = share.to(rows.dtype)[:, None]
        total = sum_over_processes(torch.cat([(rows * share).sum(0), share.sum(0)]))
        count = total[-1].clamp(min=1e-6)
        mean = total[:-1] / count
        centred = rows - mean
        variance = sum_over_processes((centred.square() * share).sum(0)) / count
        out = centred * torch.rsqrt(variance + 1e-5)
        return out if self.weight is None or self.bias is None else out * self.weight + self.bias


class MLP(nn.Module):
    """Linear layers with normalisation and SiLU between them.

    Args:
        widths: input width, then the width of each layer.
        norm: "batch" (see `RowNorm`) or "layer", which needs no batch.
        last_norm: whether the last layer is normalised too, without scale and shift.
    """

    def __init__(self, widths: tuple[int, ...], norm: Norm, last_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norm = norm
        inner = [RowNorm(width) if norm == "batch" else nn.LayerNorm(width) for width in widths[1:-1]]
        last = (
            RowNorm(widths[-1], affine=False) if norm == "batch" else nn.LayerNorm(widths[-1], elementwise_affine=False)
        )
        self.norms = nn.ModuleList([*inner, last] if last_norm else inner)

    def forward(self, rows: Tensor, share: Tensor) -> Tensor:
        """Map rows (N, C); `share` (N,) is the weight of each row in the statistics. Returns float32 or better."""
        for number, layer in enumerate(self.layers):
            rows = layer(rows)
            if number < len(self.norms):
                rows = self._normalise(self.norms[number], rows, share)
            if number < len(self.layers) - 1:
                rows = F.silu(rows)
        return at_least_float32(rows)

    def _normalise(self, norm: nn.Module, rows: Tensor, share: Tensor) -> Tensor:
        rows = at_least_float32(rows)
        out: Tensor = norm(rows, share) if self.norm == "batch" else norm(rows)
        return out


@full_precision
def embed(pooled: Tensor, head: Callable[[Tensor, Tensor], Tensor], share: Tensor | None = None) -> Tensor:
    """Pass pooled features (V, B, C) through a head, outside autocast, in float32 or better.

    There are few such vectors, so this costs next to nothing, and their differences are small: bfloat16 rounds off much
    of what statistics over a few of them then divide by (docs/decisions.md).

    Args:
        pooled: of V views of B images.
        head: maps rows (N, C) with weights (N,), such as an `MLP`.
        share: (V, B), the weight of each vector in the statistics; None weighs all alike.
    """
    rows = at_least_float32(pooled.flatten(0, 1))
    weight = rows.new_ones(rows.shape[0]) if share is None else share.flatten()
    out: Tensor = head(rows, weight).unflatten(0, pooled.shape[:2])
    return out


def projector(inputs: int, width: int, norm: Norm) -> MLP:
    """Build the projector: three layers of `width`, as published."""
    return MLP((inputs, width, width, width), norm, last_norm=True)


def predictor(width: int, inner: int, norm: Norm) -> MLP:
    """Build the predictor, which the student alone has: `width` to `inner` and back."""
    return MLP((width, inner, width), norm, last_norm=False)
