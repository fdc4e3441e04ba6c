"""Which arithmetic is never left to autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def raised(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 if it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside autocast: geometry, similarity and normalisation need more than 8 bits of mantissa.

    The function itself raises what it is given to float32; this only keeps autocast from lowering it again, on every
    device that a tensor among its arguments lies on, those in lists and tuples included.
    """

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for kind in sorted(set(_devices((*args, *kwargs.values())))):
                stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return guarded


def _devices(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, Tensor):
            yield value.device.type
        elif isinstance(value, list | tuple):
            yield from _devices(value)
