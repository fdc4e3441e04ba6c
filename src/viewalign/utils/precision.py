"""Precision of networks: the choice for a device, autocast, the gradient scaler, and TensorFloat-32.

`auto` depends only on the hardware, never on a measurement, so that every start and every process of a run makes the
same choice:

| device                                  | precision | basis                                                         |
|-----------------------------------------|-----------|---------------------------------------------------------------|
| GPU, compute capability 8.0 (Ampere) up | bf16      | NVIDIA's data sheets: tensor cores for bfloat16               |
| older GPU                               | fp16      | tensor cores for float16 only; gradients are scaled           |
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
"""Smallest compute capability of NVIDIA's GPUs with bfloat16 and TensorFloat-32."""

_CPU_UNITS = {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16"}
"""Linux's processor flags and the names of the units."""

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """A precision and the reason for it in a few words."""

    precision: Precision
    reason: str


def settle(requested: str, device: torch.device | str, key: str = "runtime.precision") -> Choice:
    """Choose the precision for a device.

    Args:
        requested: auto, fp32, bf16, fp16 or fp64.
        device: where networks run, of kind cuda or cpu.
        key: the setting's name in messages.

    Raises:
        UserError: the device does not support the precision.
    """
    device = torch.device(device)
    if requested == "auto":
        return choose(device)
    if requested == "fp16" and device.type != "cuda":
        raise UserError(f"{key}=fp16 needs a GPU: CPUs have no units for float16. Use bf16 or fp32.")
    if requested == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < BF16_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{key}=bf16 needs a GPU of compute capability 8.0 or more; {name} has less. Use fp16 or fp32.")
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
    """Choose for a CPU by its bfloat16 units, as returned by `cpu_units`."""
    if units:
        return Choice("bf16", f"CPU with {' and '.join(units)}")
    return Choice("fp32", "CPU without AMX-BF16 and AVX512-BF16")


def cpu_units(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the bfloat16 units of this machine's CPU; none if the system does not list them."""
    try:
        flags = set(cpuinfo.read_text().split())
    except OSError:
        return ()
    return tuple(unit for flag, unit in _CPU_UNITS.items() if flag in flags)


def autocast(device: str, precision: str) -> AbstractContextManager[object]:
    """Return the context of forward passes: autocast for bf16 and fp16, no change for fp32 and fp64.

    Args:
        device: a device type, such as cuda.
        precision: as chosen.
    """
    lowered = _HALF.get(precision)
    return nullcontext() if lowered is None else torch.autocast(device, lowered)


def gradient_scaler(device: str, precision: str) -> torch.amp.GradScaler:
    """Return a gradient scaler, which is active only for float16."""
    return torch.amp.GradScaler(device, enabled=precision == "fp16")


def allow_tf32(allowed: bool) -> None:
    """Set whether GPUs may round factors of float32 products to TensorFloat-32 (10 bits of mantissa instead of 23).

    This applies to convolutions and matrix products; torch's defaults differ between them (convolutions yes, products
    no). The older switches are used although torch 2.9 added `fp32_precision`: they set both, whereas if only the newer
    ones are set, code that reads the older ones (Fabric, the compiler) raises an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions warn about the older switches
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


DEVICES = ("auto", "cuda", "cpu")
"""Without Apple's "mps": it has no float64, which the geometry needs."""


def choose_device(name: str = "auto") -> str:
    """Choose a device: `auto` uses a GPU if there is one. float32 is then computed without TF32.

    Args:
        name: auto, cuda or cpu.

    Raises:
        UserError: the device does not exist.
    """
    there = {"cuda": torch.cuda.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, found in there.items() if found)
    if name == "mps":
        raise UserError("Apple's GPUs (mps) do not support float64, which is needed here; use device=cpu.")
    if name not in there:
        raise UserError(f"There is no device {name}; use one of {', '.join(DEVICES)}.")
    if not there[name]:
        raise UserError(f"This machine has no {name} device; use cpu, or omit the device.")
    allow_tf32(False)
    return name


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to a device without waiting for queued work.

    Without pinned memory the copy would wait for the GPU, even with `non_blocking`. A tensor on the device is returned
    unchanged.
    """
    if values.device.type == "cpu" and device.type != "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def read_later(value: Tensor) -> Callable[[], float]:
    """Start copying a number to the CPU; the returned function waits for this copy only, and returns the number."""
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
    """Return a tensor in float32, or unchanged if it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside autocast: geometry, similarity and normalisation need more than 8 bits of mantissa.

    The function itself converts its inputs to float32; this only prevents autocast from lowering the precision again,
    on every device of a tensor among its arguments, including lists and tuples.
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
