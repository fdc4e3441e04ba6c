"""Batches of a run; on a GPU their views are computed during the previous step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from viewalign.training.data import Samples
from viewalign.views.batch import ViewBatch


class Prefetcher:
    """Reads samples and builds their views, on a GPU one step ahead on a second stream.

    This needs the memory of one more batch. Samples, views, and the step at which an error is raised do not depend on
    the device.

    Args:
        source: yields the samples of each step.
        build: builds views from samples.
        device: of the views.
    """

    def __init__(self, source: Iterator[Samples], build: Callable[[Samples], ViewBatch], device: torch.device) -> None:
        self._source, self._build, self._device = source, build, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: tuple[Samples, ViewBatch] | Exception | None = None
        self._waited = 0.0
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def take(self) -> tuple[Samples, ViewBatch]:
        """Return the next step's samples and views."""
        self.prepare()
        if self._stream is None:
            return self._make()
        made, self._next = self._next, None
        if isinstance(made, Exception):
            raise made
        assert made is not None
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in _device_tensors(made[1]):
            # Without this, the memory could be reused for the views after next while this step still reads it.
            tensor.record_stream(current)
        return made

    def prepare(self) -> None:
        """Queue the next step's views on a GPU, unless they are queued already."""
        if self._stream is None or self._next is not None:
            return
        try:
            self._next = self._make()
        except Exception as problem:  # raised at the step that it belongs to
            self._next = problem

    def take_waited(self) -> float:
        """Return the seconds since the last call in which the device had nothing to do but wait for samples.

        A GPU is waited for until it has finished what was queued before the last samples came.
        """
        for begin, end in self._gaps:
            end.synchronize()
            self._waited += begin.elapsed_time(end) / 1000
        self._gaps.clear()
        waited, self._waited = self._waited, 0.0
        return waited

    def _make(self) -> tuple[Samples, ViewBatch]:
        if self._stream is None:
            begin = time.perf_counter()
            samples = next(self._source)
            self._waited += time.perf_counter() - begin
            return samples, self._build(samples)
        # Between two events on the stream of the steps is only the time for which that stream had no work.
        gap = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        current = torch.cuda.current_stream(self._device)
        gap[0].record(current)
        samples = next(self._source)
        gap[1].record(current)
        self._gaps.append(gap)
        with torch.cuda.stream(self._stream):
            return samples, self._build(samples)


def _device_tensors(batch: ViewBatch) -> list[Tensor]:
    local = [] if batch.local is None else _device_tensors(batch.local)
    return [batch.views, batch.targets, batch.valid, *local]
