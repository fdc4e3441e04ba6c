"""Sums and gathers over the processes of a run, with gradients; the identity for a single process.

A rank's loss may depend on the data of other ranks. The backward of a sum is a sum; that of a gather returns to each
rank the gradients of all ranks for its part. With DDP's mean over ranks, many processes then equal one
(tests/training).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather, all_reduce

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def rank() -> int:
    """Return the rank of this process."""
    return distributed.get_rank() if world_size() > 1 else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """Add a tensor up over all processes."""
    if world_size() == 1:
        return values
    summed: Tensor = all_reduce(values)
    return summed


def gather_over_processes(rows: Tensor, dim: int = 0) -> Tensor:
    """Concatenate the parts of all processes along an axis, in the order of ranks; parts have equal shapes."""
    if world_size() == 1:
        return rows
    return torch.cat(list(all_gather(rows.contiguous())), dim=dim)


def gather_objects(mine: T) -> list[T]:
    """Return the objects of all processes, in the order of ranks."""
    if world_size() == 1:
        return [mine]
    everyone: list[T | None] = [None] * world_size()
    distributed.all_gather_object(everyone, mine)
    return cast(list[T], everyone)


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace gradients by their means over all processes, in one message per data type."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for kind in {gradient.dtype for gradient in gradients}:
        mine = [gradient for gradient in gradients if gradient.dtype == kind]
        message = torch.cat([gradient.flatten() for gradient in mine])
        distributed.all_reduce(message)
        message /= world_size()
        for gradient, mean in zip(mine, message.split([one.numel() for one in mine]), strict=True):
            gradient.copy_(mean.view_as(gradient))
