"""Losses of self-distillation: DINO, iBOT, KoLeo, Gram anchoring, and the teacher's targets over prototypes.

A network gives every image or position a logit per prototype. The targets are probabilities over prototypes from the
teacher's logits; centering or Sinkhorn-Knopp keeps them from collapsing to one prototype.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from viewalign.losses.reduction import mean_per_view
from viewalign.utils.distributed import gather_over_processes, rank, sum_over_processes
from viewalign.utils.precision import at_least_float32, full_precision


@full_precision
def sinkhorn_knopp(logits: Tensor, temperature: float, weight: Tensor | None = None, iterations: int = 3) -> Tensor:
    """Return targets in which all prototypes are used equally, over the rows of all processes.

    The weighted rows `softmax(logits / temperature)` are scaled alternately so that every prototype has the same total
    and every row sums to 1 (Cuturi, arXiv:1306.0895; Caron et al., arXiv:2006.09882). The result converges to the one
    of published code, which scales prototypes first; beginning with rows needs no maximum over processes.

    Args:
        logits: (N, K) of this process.
        temperature: of the softmax.
        weight: (N,) share of each row in the totals, at least 0; None means equal shares.
        iterations: number of scalings of prototypes; 0 gives the softmax.

    Returns:
        (N, K) rows that sum to 1, without gradient.
    """
    with torch.no_grad():
        targets = torch.softmax(at_least_float32(logits) / temperature, dim=1)
        tiny = torch.finfo(targets.dtype).tiny
        share = targets.new_ones(targets.shape[0], 1) if weight is None else weight.to(targets.dtype)[:, None]
        for _ in range(iterations):
            targets = targets / sum_over_processes((targets * share).sum(0)).clamp(min=tiny)
            targets = targets / targets.sum(1, keepdim=True).clamp(min=tiny)
        return targets


class PrototypeTargets(nn.Module):
    """Targets from a teacher's logits, by centering (DINO, arXiv:2104.14294) or Sinkhorn-Knopp (DINOv2, 2304.07193).

    Args:
        prototypes: K.
        kind: "centering" subtracts a running mean of the teacher's logits over all processes; "sinkhorn" scales the
            targets of a batch (`sinkhorn_knopp`) and needs many rows per prototype.
        momentum: of the running mean.
        iterations: of Sinkhorn-Knopp.

    Example:
        ```python
        targets = viewalign.losses.PrototypeTargets(64)
        teacher, student = torch.randn(8, 64), torch.randn(8, 64)
        value = viewalign.losses.IBOTLoss()(student[None], targets(teacher, 0.04)[None])
        targets.update()  # after the optimizer step
        ```
    """

    center: Tensor

    def __init__(
        self,
        prototypes: int,
        kind: Literal["centering", "sinkhorn"] = "centering",
        momentum: float = 0.9,
        iterations: int = 3,
    ) -> None:
        super().__init__()
        self.kind, self.momentum, self.iterations = kind, momentum, iterations
        self.register_buffer("center", torch.zeros(prototypes))
        self._mean: Tensor | None = None

    @full_precision
    def forward(self, logits: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
        """Return targets (N, K) without gradient; arguments as for `sinkhorn_knopp`."""
        logits = at_least_float32(logits.detach())
        if self.kind == "sinkhorn":
            return sinkhorn_knopp(logits, temperature, weight, self.iterations)
        if self.training:
            share = logits.new_ones(logits.shape[0], 1) if weight is None else weight.to(logits.dtype)[:, None]
            total = sum_over_processes(torch.cat([(logits * share).sum(0), share.sum(0)]))
            self._mean = total[:-1] / total[-1].clamp(min=1e-6)
        return torch.softmax((logits - self.center) / temperature, dim=1)

    @torch.no_grad()
    def update(self, made: Tensor | None = None) -> None:
        """Update the running mean by the latest logits in training mode; `made` as for `Method.after_update`."""
        mean, self._mean = self._mean, None
        if mean is None:
            return
        moved = self.center.lerp(mean.to(self.center.dtype), 1 - self.momentum)
        self.center.copy_(moved if made is None else torch.where(made > 0, moved, self.center))


@full_precision
def view_cross_entropy(
    student: Tensor, targets: Tensor, temperature: float = 0.1, weight: Tensor | None = None
) -> Tensor:
    """Return the loss of DINO (Caron et al., arXiv:2104.14294): every view of an image predicts its other global views.

    Args:
        student: (V, B, K) logits of V views of B images, global views first.
        targets: (W, B, K) of the W global views.
        temperature: of the student.
        weight: (V, B) weight of each student view, at least 0; None means equal weights.

    Returns:
        The mean of `-Σ target·log softmax(student / temperature)` over pairs of different views, then over images.
    """
    logarithm = torch.log_softmax(at_least_float32(student) / temperature, dim=-1)
    entropy = -torch.einsum("vbk,wbk->bvw", logarithm, targets.detach().to(logarithm.dtype))
    views, others = student.shape[0], targets.shape[0]
    pairs = 1 - torch.eye(views, others, dtype=entropy.dtype, device=entropy.device).expand_as(entropy)
    return mean_per_view(entropy, pairs if weight is None else pairs * weight.to(entropy.dtype).T[..., None])


@full_precision
def token_cross_entropy(student: Tensor, targets: Tensor, weight: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the loss of iBOT (Zhou et al., arXiv:2111.07832): the mean cross-entropy over positions, then over views.

    Args:
        student: (N, P, K) logits at P positions of N views, which the student's input masks.
        targets: (N, P, K) of the teacher at the same positions.
        weight: (N, P) weight of each position, at least 0.
        temperature: of the student.
    """
    logarithm = torch.log_softmax(at_least_float32(student) / temperature, dim=-1)
    return mean_per_view(-(targets.detach().to(logarithm.dtype) * logarithm).sum(-1), weight)


@full_precision
def koleo(rows: Tensor) -> Tensor:
    """Return the KoLeo regulariser (Sablayrolles et al., arXiv:1806.03198), which spreads unit vectors evenly.

    The mean of `-log d` with d the distance of a row to the nearest other row of all processes; each process returns
    the mean of its own rows. 0 if there is only one row.

    Args:
        rows: (N, C) of different images; they are normalised here.
    """
    rows = F.normalize(at_least_float32(rows), dim=-1)
    candidates = gather_over_processes(rows)
    if candidates.shape[0] < 2:
        return rows.sum() * 0
    with torch.no_grad():
        itself = torch.arange(rows.shape[0], device=rows.device)[:, None] + rank() * rows.shape[0]
        similarity = (rows @ candidates.T).scatter(1, itself, float("-inf"))
        nearest = similarity.argmax(1, keepdim=True).expand_as(rows)
    distance = F.pairwise_distance(rows, candidates.gather(0, nearest), eps=1e-8)
    return -torch.log(distance + 1e-8).mean()


@full_precision
def gram_anchoring(student: Tensor, anchor: Tensor, weight: Tensor) -> Tensor:
    """Return the loss of Gram anchoring (DINOv3, arXiv:2508.10104): similarities between positions stay as they were.

    The mean squared difference of the cosines between all pairs of positions of a view. Vectors may rotate as long as
    their cosines are those of the anchor, an earlier teacher.

    Args:
        student, anchor: (N, P, C) features at the same P positions of N views.
        weight: (N, P) weight of each position; a pair has the product.

    Returns:
        The weighted mean over the pairs of a view, then the mean over views.
    """
    a, b = (F.normalize(at_least_float32(rows), dim=-1) for rows in (student, anchor.detach()))
    difference = a @ a.transpose(1, 2) - b @ b.transpose(1, 2)
    share = weight.to(difference.dtype)
    return mean_per_view(difference.square(), share[:, :, None] * share[:, None])


@full_precision
def prototype_figures(targets: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Return two figures of targets (N, K) over all processes, for the health panel; weights (N,) as in the loss.

    Returns:
        "teacher_entropy": mean entropy of a target divided by log K, 0 if certain and 1 if uniform.
        "prototype_usage": effective number of prototypes (exponential of the entropy of the mean target) divided by the
        largest one of sharp targets, which is the smaller of K and the number of rows; at most 1.
    """
    share = targets.new_ones(targets.shape[0]) if weight is None else weight.to(targets.dtype)
    entropy = -torch.special.xlogy(targets, targets).sum(1)
    sums = torch.cat([(targets * share[:, None]).sum(0), (entropy * share).sum()[None], share.sum()[None]])
    sums = sum_over_processes(sums.detach())
    count = sums[-1].clamp(min=1e-6)
    mean = sums[:-2] / count
    used = torch.exp(-torch.special.xlogy(mean, mean).sum())
    prototypes = targets.shape[1]
    return {
        "teacher_entropy": sums[-2] / count / math.log(max(prototypes, 2)),
        "prototype_usage": (used / count.clamp(min=1, max=prototypes)).clamp(max=1),
    }
