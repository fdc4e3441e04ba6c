"""Time on a device: by CUDA events, which do not synchronise, or by the clock on a CPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from statistics import median
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Wait until a device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Moment:
    """A point in a device's current stream, or in time on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        self._clock = time.perf_counter()

    def until(self, later: Moment) -> float:
        """Return the seconds to a later moment; on a GPU both must be finished (`wait`)."""
        if self._event is None:
            return later._clock - self._clock
        return float(self._event.elapsed_time(later._event)) / 1e3


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = 5, warm: int = 2) -> float:
    """Return the median seconds of a call on a device, after warm-up calls."""
    times = []
    for _ in range(warm + repeats):
        begin = Moment(device)
        run()
        end = Moment(device)
        wait(device)
        times.append(begin.until(end))
    return median(times[warm:])


class Parts:
    """Times of named parts of steps, summed per step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[int, str, Moment, Moment]] = []
        self.step = 0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its calls are timed as part `name` of the current step."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = Moment(self._device)
            result = function(*args, **kwargs)
            self._marks.append((self.step, name, begin, Moment(self._device)))
            return result

        return run

    def clear(self) -> None:
        """Remove all times."""
        self._marks.clear()

    def medians(self, steps: range) -> dict[str, float]:
        """Return the median seconds of each part over some steps; on a GPU these must be finished (`wait`)."""
        sums: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for step, name, begin, end in self._marks:
            if step in steps:
                sums[name][step] += begin.until(end)
        return {name: median(by_step.values()) for name, by_step in sums.items()}


_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def product_rate(device: torch.device, precision: str) -> float:
    """Return the operations per second of a large matrix product of random numbers.

    Args:
        device: on a CPU the matrices are small.
        precision: bf16, fp16, or anything else for float32.
    """
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=_TYPES.get(precision, torch.float32)) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device, repeats=10)


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a copy within the device's memory reads and writes."""
    source = torch.randn(1 << (28 if device.type == "cuda" else 20), device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / seconds_of(lambda: target.copy_(source), device)


def upload_rate(device: torch.device) -> float:
    """Return the bytes per second from pinned host memory to a GPU."""
    source = torch.empty(1 << 26).pin_memory()
    return source.numel() * source.element_size() / seconds_of(lambda: source.to(device, non_blocking=True), device)
