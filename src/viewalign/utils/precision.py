"""What networks compute in: the precision of a device, autocast, the gradient scaler, and TensorFloat-32.

`auto` follows from what the hardware is, never from a measurement, so that every start and every process of a run
chooses alike:

| device                                  | precision | known from                                                    |
|-----------------------------------------|-----------|---------------------------------------------------------------|
| GPU, compute capability 8.0 (Ampere) up | bf16      | NVIDIA's data sheets: tensor cores for bfloat16               |
| GPU before                              | fp16      | tensor cores for float16 alone; gradients are scaled          |
| CPU with AVX512-BF16                    | bf16      | measured (docs/benchmarks.md): steps 2.0 to 2.7 times as fast |
| CPU with AMX-BF16                       | bf16      | assumed: a larger unit for the same products                  |
| any other CPU                           | fp32      | measured (docs/decisions.md): bfloat16 is emulated there      |
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from viewalign.errors import UserError

Precision = Literal["fp32", "bf16", "fp16", "fp64"]

BF16_CAPABILITY = (8, 0)
"""The compute capability from which NVIDIA's GPUs have bfloat16 and TensorFloat-32."""

_CPU_UNITS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16"}
"""Names of Linux's processor flags, and what the units are called."""

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """A precision and why it was chosen, in a few words."""

    precision: Precision
    reason: str


def settle(requested: str, device: torch.device | str, key: str = "runtime.precision") -> Choice:
    """Settle a precision for a device.

    Args:
        requested: auto, fp32, bf16, fp16 or fp64.
        device: where networks run, of kind cuda or cpu.
        key: the setting's name in messages.

    Raises:
        UserError: the device cannot compute in it.
    """
    device = torch.device(device)
    if requested == "auto":
        return choose(device)
    if requested == "fp16" and device.type != "cuda":
        raise UserError(f"{key}=fp16 needs a GPU: CPUs have no units for float16. Use bf16, fp32 or auto.")
    if requested == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < BF16_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{key}=bf16 needs a GPU of compute capability 8.0 or more; {name} has less. Use fp16 or auto.")
    return Choice(requested, "set in the recipe")  # type: ignore[arg-type]


def choose(device: torch.device) -> Choice:
    """Choose a precision by the table above."""
    if device.type == "cuda":
        return choose_for_gpu(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    return choose_for_cpu(cpu_units())


def choose_for_gpu(name: str, capability: tuple[int, int]) -> Choice:
    """Choose for a GPU by its compute capability."""
    stated = f"{name}, compute capability {capability[0]}.{capability[1]}"
    if capability >= BF16_CAPABILITY:
        return Choice("bf16", stated)
    return Choice("fp16", f"{stated}: no bfloat16, so float16 with a gradient scaler")


def choose_for_cpu(units: tuple[str, ...]) -> Choice:
    """Choose for a CPU by its units for bfloat16, as `cpu_units` names them."""
    if units:
        return Choice("bf16", f"CPU with {' and '.join(units)}")
    return Choice("fp32", "CPU without AMX-BF16 and AVX512-BF16")


def cpu_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return which units for bfloat16 this machine's CPU has; none where the system does not list them."""
    try:
        flags = set(cpuinfo.read_text().split())
    except OSError:
        return ()
    return tuple(unit for flag, unit in _CPU_UNITS.items() if flag in flags)


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context of forward passes: autocast for bf16 and fp16, nothing for fp32 and fp64.

    Args:
        device: a kind of device, such as cuda.
        precision: settled.
    """
    lowered = _HALF.get(precision)
    return nullcontext() if lowered is None else torch.autocast(device, lowered)


def gradient_scaler(device: str, precision: str) -> torch.amp.GradScaler:
    """Return the scaler that keeps float16's gradients from underflow; for other precisions one that does nothing."""
    return torch.amp.GradScaler(device, enabled=precision == "fp16")


def allow_tf32(allowed: bool) -> None:
    """Say whether GPUs may round factors of float32 products to TensorFloat-32 (10 bits of mantissa instead of 23).

    It holds for convolutions and matrix products alike; torch's own defaults differ (convolutions yes, products no).
    The older switches are used although torch 2.9 added `fp32_precision`: they set both, and where only the newer ones
    are set, torch's own readers of the older ones (Fabric, the compiler) raise an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions warn of the older switches
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


DEVICES = ("auto", "cuda", "cpu")
"""Not Apple's "mps": it has no float64, in which geometry and figures are worked out."""


def choose_device(name: str = "auto") -> str:
    """Settle a device: `auto` takes a GPU where there is one, on which float32 then is float32, not TF32.

    Args:
        name: auto, cuda or cpu.

    Raises:
        UserError: a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, found in there.items() if found)
    if name == "mps":
        raise UserError("Apple's GPUs (mps) have no float64, which is needed here; take cpu.")
    if name not in there:
        raise UserError(f"There is no device {name}; there are {', '.join(DEVICES)}.")
    if not there[name]:
        raise UserError(f"There is no {name} device here; take cpu, or leave the device out.")
    allow_tf32(False)
    return name


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor of the CPU to a device without waiting for the work that is queued there.

    Memory that is not pinned would make the copy wait on a GPU, whatever `non_blocking` says. A tensor that lies on the
    device already is returned as it is.
    """
    if values.device.type == "cpu" and device.type != "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def read_later(value: Tensor) -> Callable[[], float]:
    """Start to copy a number to the CPU; the function that is returned waits for this copy alone, and returns it."""
    if value.device.type == "cpu":
        return value.item
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    copied = torch.cuda.Event() if value.device.type == "cuda" else None
    if copied is not None:
        copied.record(torch.cuda.current_stream(value.device))

    def read() -> float:
        if copied is not None:
            copied.synchronize()
        return copy.item()

    return read


P = ParamSpec("P")
R = TypeVar("R")


def at_least_float32(tensor: Tensor) -> Tensor:
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
