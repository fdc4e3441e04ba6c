"""Gradient accumulation with the loss of the whole batch, by gradient caching (Gao et al., arXiv:2101.06983).

Plain accumulation would compute a separate loss for each part, with fewer negatives and other batch statistics. Here
the networks process the parts without gradient, the loss is computed from all latents together, and each part is
processed once more to propagate the gradients of its latents. The step equals that of the whole batch up to rounding,
for one more forward pass.
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
    """Return the result of the whole batch without gradient; arguments are those of `step_in_parts`."""
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
    """Compute loss and gradients of a batch whose networks run in `parts`.

    Gradients are accumulated in the parameters, averaged over processes.

    Args:
        method: not wrapped for several processes.
        batch: this process's part of the global batch.
        parts: number of parts, a divisor of the batch's volumes.
        autocast: context of forward passes.
        return_diagnostics: as for `Method.forward`.
        scale: scales the loss before the backward pass, for gradients in float16.
    """
    with torch.no_grad(), autocast():
        latents = _latents(method, batch, parts, return_diagnostics)
    leaves = {name: value.requires_grad_() for name, value in latents.items() if value.is_floating_point()}
    with autocast():
        result = method.compute_loss(batch, {**latents, **leaves}, return_diagnostics=return_diagnostics)
    scale(result.loss).backward()
    for k, part in enumerate(_parts(batch, parts)):
        with autocast():
            outputs = method.forward_features(part, targets=False)
        _propagate(outputs, leaves, k)
    average_gradients(list(method.parameters()))
    return result


def _latents(method: Method, batch: ViewBatch, parts: int, return_diagnostics: bool) -> Latents:
    return join([method.forward_features(part, return_diagnostics=return_diagnostics) for part in _parts(batch, parts)])


def _parts(batch: ViewBatch, parts: int) -> Iterator[ViewBatch]:
    size = batch.count[1] // parts
    for k in range(parts):
        yield batch.part(k * size, (k + 1) * size)


def _propagate(outputs: Latents, leaves: dict[str, Tensor], number: int) -> None:
    """Propagate the gradients of the whole batch's latents through the latents of part `number`."""
    used = {name: value for name, value in outputs.items() if value.requires_grad and leaves[name].grad is not None}
    gradients = [
        leaves[name].grad.chunk(leaves[name].shape[1] // value.shape[1], 1)[number]  # type: ignore[union-attr]
        for name, value in used.items()
    ]
    torch.autograd.backward(list(used.values()), gradients)
