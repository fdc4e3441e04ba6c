"""Synchronisations and kernels of a step on a GPU."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import viewalign
from viewalign.training.gpu.timing import wait

_PACKAGE = Path(viewalign.__file__).parent
_CHECKS = _PACKAGE / "training" / "gpu"


@contextmanager
def recorded_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count by `file:line` of this package where the CPU waits for the GPU within the block, in all threads.

    Nothing is counted on a CPU.
    """
    found: Counter[str] = Counter()
    if device.type != "cuda":
        yield found
        return

    def note(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:  # noqa: ARG001
        if "called a synchronizing" in str(message):
            found[_caller() or f"{Path(filename).name}:{lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _caller() -> str | None:
    """Return the innermost line of the package on the stack, without the modules of the check itself."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE) and path.parent != _CHECKS:
            return f"{path.relative_to(_PACKAGE).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return None


@contextmanager
def profiled(device: torch.device) -> Iterator[dict[str, Any]]:
    """Profile the block; the dictionary is filled at its end.

    Its keys are `busy_s` (seconds of all kernels), `kernels` (their number) and `top` (seconds, count and name of the
    25 slowest). On a CPU these are operations instead of kernels.
    """
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    result: dict[str, Any] = {}
    with profile(activities=kinds) as profiler:
        yield result
        wait(device)
    kernels = [event for event in profiler.key_averages() if _is_kernel(event, device)]
    rows = sorted(((_seconds(event, device), event.count, event.key) for event in kernels), reverse=True)
    result["busy_s"] = round(sum(row[0] for row in rows), 4)
    result["kernels"] = sum(row[1] for row in rows)
    result["top"] = [[round(seconds, 5), count, name[:100]] for seconds, count, name in rows[:25]]


def _seconds(event: Any, device: torch.device) -> float:
    return float(event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / 1e6


def _is_kernel(event: Any, device: torch.device) -> bool:
    if _seconds(event, device) <= 0 or getattr(event, "is_user_annotation", False):
        return False
    return device.type != "cuda" or str(event.device_type).endswith("CUDA")
