"""The speed of a run, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """Measures steps apart from validations, probes and saving between them.

    Args:
        step: at which this process starts or resumes the run.
    """

    def __init__(self, step: int) -> None:
        self._first = self._since = step
        self._start = self._begin = time.perf_counter()
        self._apart = 0.0

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Do not count the time in the context as time of steps."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._apart += time.perf_counter() - begin

    def take(self, step: int) -> tuple[int, float]:
        """Return the steps since the last call, and their seconds without work apart."""
        now = time.perf_counter()
        found = step - self._since, now - self._begin - self._apart
        self._begin, self._since, self._apart = now, step, 0.0
        return found

    def left(self, step: int, steps: int) -> float:
        """Return the expected seconds until the last of `steps`, in which work apart takes the same share of time."""
        return (steps - step) * (time.perf_counter() - self._start) / max(step - self._first, 1)
