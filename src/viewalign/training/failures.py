"""The failure of one process ends all processes of a run; each reports the reason."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from torch.distributed.distributed_c10d import _get_default_store

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.registry import requirements_of
from viewalign.utils import distributed
from viewalign.utils.memory import is_out_of_memory, stated
from viewalign.utils.text import counted, size_text

_KEY = "viewalign/failure"
_POLL = 0.5
_LINGER = 2.0
"""Seconds for which a failed process continues, so that the others read its message before connections close."""

_PATIENCE = 20.0
"""Seconds after which a process that still waits for a failed process is ended: NCCL does not detect its end."""


class Failures:
    """Context that announces an error of this process to the others, through the store by which their group was formed.

    Attributes:
        sentence: the message of another process; "" if there is none.
    """

    def __init__(self) -> None:
        self.sentence = ""
        self._done = threading.Event()
        self._store = _get_default_store() if distributed.world_size() > 1 else None
        self._thread = threading.Thread(target=self._listen, daemon=True, name="failures")

    def __enter__(self) -> Failures:
        if self._store is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, Exception) and not self.sentence:
            name = "" if isinstance(value, UserError) else f"{type(value).__name__}: "
            self.announce(f"{name}{value}")
        self._done.set()
        if self._store is not None:
            self._thread.join()

    def announce(self, sentence: str) -> None:
        """Announce a failure of this process to the others."""
        if self._store is not None:
            self._done.set()
            with suppress(RuntimeError):  # the process that holds the store has ended
                self._store.set(_KEY, f"process {distributed.rank()} of {distributed.world_size()}: {sentence}")
                time.sleep(_LINGER)

    def _listen(self) -> None:
        while not self.sentence:
            if self._done.wait(_POLL):
                return
            self.sentence = self._announced()
        if not self._done.wait(_PATIENCE):
            print(f"viewalign: {self.sentence}", file=sys.stderr, flush=True)
            os._exit(1)

    def _announced(self) -> str:
        assert self._store is not None
        try:
            text: bytes = self._store.get(_KEY) if self._store.check([_KEY]) else b""
        except RuntimeError:
            self._done.set()  # the process that holds the store has ended
            return ""
        return text.decode()


@contextmanager
def shortage_reported(recipe: Recipe) -> Iterator[None]:
    """Turn exhausted memory into a `UserError`.

    Args:
        recipe: settled, so that its precision is known.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        traceback.clear_frames(problem.__traceback__)  # they hold the tensors of the step
        sentence = f"Out of memory: {stated(problem)}. {needs(recipe, distributed.world_size())}"
        raise UserError(sentence) from None


def needs(recipe: Recipe, world: int) -> str:
    """Return in words the memory of a step in one of `world` processes, and the settings that need less."""
    from viewalign.training.cost import remedies  # imported only on failure
    from viewalign.training.simulation import simulated_peak

    views, size = round(requirements_of(recipe).images), "×".join(map(str, recipe.views.patch_size))
    images = f"{counted(recipe.batch // world, 'volume')}" + (f" × {views} views" if views > 1 else "")
    step = f"{images} of {size} through {recipe.network.name} in {recipe.runtime.precision}"
    try:
        peak = simulated_peak(recipe, recipe.runtime.precision, world)
        found = remedies(recipe, recipe.runtime.precision, world)
    except Exception:  # the shortage must be reported in any case, if without figures
        less = "runtime.recompute, runtime.accumulate, batch, views.patch_size"
        return f"Requested: {step}. Settings that need less: {less}."
    less = ", ".join(f"{one.setting} {size_text(one.bytes)}" for one in found if one.bytes < peak)
    advice = f" With {less}. runtime.* do not change the loss and may be changed with --resume." if less else ""
    return f"Requested: {step}, which needs {size_text(peak)} (simulated; libraries need some more).{advice}"
