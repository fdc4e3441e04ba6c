"""A batch that does not fit into memory: the networks see it in parts, the losses see it whole.

Plain accumulation would judge every part by itself: fewer negatives, other statistics in the heads, another loss. Here
the parts pass the networks without gradient first, the latents of all are judged together, and each part passes once
more to carry its latents' gradients back (gradient caching, Gao et al., arXiv:2101.06983). The step is that of the
whole batch up to rounding, for one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from viewalign.methods.base import Latents, Method, StepResult, join
from viewalign.utils.distributed import average_gradients
from viewalign.views.batch import ViewBatch

Autocast = Callable[[], AbstractContextManager[object]]


def evaluate_in_parts(
    method: Method, batch: ViewBatch, parts: int, autocast: Autocast, return_diagnostics: bool = False
) -> StepResult:
    """Return the whole batch's result; without gradient, which `step_in_parts` adds."""
    with torch.no_grad(), autocast():
        latents = _latents(method, batch, parts, return_diagnostics)
        return method.compute_loss(batch, latents, return_diagnostics=return_diagnostics)


def step_in_parts(
    method: Method,
    batch: ViewBatch,
    parts: int,
    autocast: Autocast,
    return_diagnostics: bool = False,
    scale: Callable[[Tensor], Tensor] = torch.clone,
) -> StepResult:
    """Work out loss and gradients of a batch whose networks run in `parts`.

    Gradients of parameters are left where a backward pass leaves them, averaged over processes.

    Args:
        method: what is trained, not wrapped for several processes.
        batch: this process's share of the global batch.
        parts: how many; a divisor of the batch's volumes.
        autocast: the arithmetic of forward passes.
        examine: as for `Method.step`.
        scale: multiplies the loss before the backward pass, for gradients in float16.
    """
    with torch.no_grad(), autocast():
        latents = _latents(method, batch, parts, return_diagnostics)
    leaves = {name: value.requires_grad_() for name, value in latents.items() if value.is_floating_point()}
    with autocast():
        result = method.compute_loss(batch, {**latents, **leaves}, return_diagnostics=return_diagnostics)
    scale(result.loss).backward()
    for k, part in enumerate(_parts(batch, parts)):
        with autocast():
            again = method.forward_features(part, targets=False)
        _carry_back(again, leaves, k)
    average_gradients(list(method.parameters()))
    return result


def _latents(method: Method, batch: ViewBatch, parts: int, return_diagnostics: bool) -> Latents:
    """Return the latents of the whole batch, whose parts pass the networks one after the other."""
    return join([method.forward_features(part, return_diagnostics=return_diagnostics) for part in _parts(batch, parts)])


def _parts(batch: ViewBatch, parts: int) -> Iterator[ViewBatch]:
    each = batch.count[1] // parts
    for k in range(parts):
        yield batch.part(k * each, (k + 1) * each)


def _carry_back(made: Latents, leaves: dict[str, Tensor], number: int) -> None:
    """Give the latents of part `number` the gradients that the whole batch's latents have at its place."""
    learnt = {name: value for name, value in made.items() if value.requires_grad and leaves[name].grad is not None}
    gradients = [
        leaves[name].grad.chunk(leaves[name].shape[1] // value.shape[1], 1)[number]  # type: ignore[union-attr]
        for name, value in learnt.items()
    ]
    torch.autograd.backward(list(learnt.values()), gradients)
