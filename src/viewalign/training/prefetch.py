"""The batches of a run with their views, which a GPU makes while it computes the step before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from viewalign.training.data import Samples
from viewalign.views.batch import ViewBatch


class Prefetcher:
    """Reads samples and builds their views: on a CPU when they are taken, on a GPU one step before.

    On a GPU views are built on a second stream, beside the step that is computed, for the memory of one more batch.
    Samples, views, and the step at which an error is raised are the same on both.

    Args:
        source: yields the samples of each step.
        build: makes views of samples.
        device: where they are made.

    Attributes:
        waited: how long reading took in all, in seconds.
    """

    def __init__(self, source: Iterator[Samples], build: Callable[[Samples], ViewBatch], device: torch.device) -> None:
        self._source, self._build, self._device = source, build, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: tuple[Samples, ViewBatch] | Exception | None = None
        self.waited = 0.0

    def take(self) -> tuple[Samples, ViewBatch]:
        """Return the next step's samples and views."""
        self.prepare()
        if self._stream is None:
            return self._make()
        made, self._next = self._next, None
        if isinstance(made, Exception):
            raise made
        assert made is not None
        present = torch.cuda.current_stream(self._device)
        present.wait_stream(self._stream)
        for tensor in _tensors(made[1]):
            # Without this, memory could be used for the views after next while this step still reads it.
            tensor.record_stream(present)
        return made

    def prepare(self) -> None:
        """Queue the next step's views, if that is not done yet; on a CPU this does nothing."""
        if self._stream is None or self._next is not None:
            return
        try:
            self._next = self._make()
        except Exception as problem:  # it belongs to the next step, and is raised there
            self._next = problem

    def _make(self) -> tuple[Samples, ViewBatch]:
        begin = time.perf_counter()
        samples = next(self._source)
        self.waited += time.perf_counter() - begin
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            return samples, self._build(samples)


def _tensors(batch: ViewBatch) -> list[Tensor]:
    """Return the tensors of a batch that lie on its device."""
    return [batch.views, batch.targets, batch.valid, *(_tensors(batch.local) if batch.local is not None else ())]
