"""Timed steps of a recipe: the trainer of `viewalign pretrain` on batches from memory or from a store."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.methods.registry import requirements_of
from viewalign.recipes.loading import load
from viewalign.training.cost import step_flops
from viewalign.training.data import Samples
from viewalign.training.gpu.timing import Moment, Parts, wait
from viewalign.training.launch import launch
from viewalign.training.run import assemble
from viewalign.training.state import TrainingState
from viewalign.utils.console import ProgressLine
from viewalign.weights.run_folder import open_folder, read_log

_HELD = 3
"""Batches that are kept in memory and reused."""
_LAST = 2
"""Steps at the end that are not timed: the loop computes health figures in the last one."""
QUIET = ("validate.every=0", "log.tensorboard=false", "log.health_every=1000000", "checkpoint.every=1000000")
"""Settings that disable everything but the steps."""

LESS_MEMORY: tuple[tuple[str, ...], ...] = ((), ("runtime.recompute=true",), ("runtime.recompute=true", "batch=2"))
"""Settings with which a large network is tried, in this order, until it fits into memory."""

T = TypeVar("T")
Source = Callable[[int, int], Iterator[Samples]]
"""Yields the samples of steps [first, last)."""


@dataclass(frozen=True)
class StepTimes:
    """Times of steps.

    Attributes:
        seconds: of each step.
        parts: median seconds of the parts of a step by name.
        memory: peak bytes "allocated" and "reserved" on the GPU; empty on a CPU.
        warm_up: seconds before the first timed step.
    """

    seconds: list[float]
    parts: dict[str, float]
    memory: dict[str, int]
    warm_up: float

    @property
    def median(self) -> float:
        """The median seconds of a step."""
        return median(self.seconds)


class Bench:
    """A recipe's trainer with timed steps.

    Args:
        recipe: name of a recipe.
        settings: overrides as on the command line.
        store: the folder of the store that batches come from.
        out: a new folder for the run.
        device: cuda or cpu.
    """

    def __init__(self, recipe: str, settings: list[str], store: Path, out: Path, device: str) -> None:
        own = [f"data={store}", f"out={out}", f"runtime.device={device}", "optim.lr=1e-4", *QUIET]
        requested = load(recipe, [*own, *settings])
        requirements = requirements_of(requested)
        made, fabric = launch(
            requested, requirements.group, requirements.has_unused_parameters, requirements.deterministic
        )
        folder, made = open_folder(made, resume=False)
        self.trainer = assemble(made, requirements, Store.open(store), folder, fabric)
        self.name, self.recipe, self.device, self.feed = recipe, made, fabric.device, self.trainer.feed
        self.flops = step_flops(made)
        self.trainer.progress_line = ProgressLine(quiet=True)
        self.trainer.save = lambda prune=True: True  # type: ignore[method-assign]  # noqa: ARG005
        self.parts = Parts(self.device)
        self._held: list[Samples] = []
        self._moments: list[Moment] = []
        self._watch_parts()

    def _watch_parts(self) -> None:
        trainer = self.trainer
        for owner, name, part in (
            (trainer.method, "forward_features", "networks"),
            (trainer.method, "compute_loss", "losses"),
            (trainer.fabric, "backward", "backward"),
            (trainer.optimizer, "step", "optimizer"),
            (trainer.method, "after_update", "teacher"),
        ):
            setattr(owner, name, self.parts.timed(part, getattr(owner, name)))
        self.feed = replace(self.feed, build=self.parts.timed("views", self.feed.build))

    def measure(self, steps: int, warm: int = 2, around: AbstractContextManager[Any] | None = None) -> StepTimes:
        """Time steps with batches that are already in memory.

        Args:
            steps: number of timed steps.
            warm: number of steps before.
            around: entered around the first timed step.
        """
        if not self._held:
            self._held = list(self._from_store(0)(0, _HELD))
        begin = Moment(self.device)
        self._run(warm + steps, warm, self._from_memory, around)
        memory = {}
        if self.device.type == "cuda":
            memory["allocated"] = torch.cuda.max_memory_allocated(self.device)
            memory["reserved"] = torch.cuda.max_memory_reserved(self.device)
        moments = self._moments
        seconds = [a.until(b) for a, b in itertools.pairwise(moments[warm : warm + steps + 1])]
        parts = self.parts.medians(range(warm, warm + steps))
        return StepTimes(seconds, parts, memory, begin.until(moments[warm]))

    def _from_memory(self, first: int, last: int) -> Iterator[Samples]:
        return itertools.islice(itertools.cycle(self._held), last - first)

    def _from_store(self, workers: int) -> Source:
        read: Any = self.feed.train  # a partial function whose arguments a call may replace
        return partial(read, workers=workers)

    def data_wait(self, workers: int, steps: int) -> dict[str, float]:
        """Read from the store; return volumes per second and the share of time in which the loop waited for data."""
        recipe = self.trainer.recipe
        self.trainer.recipe = recipe.model_copy(update={"log": recipe.log.model_copy(update={"every": steps})})
        self._run(2 * steps, 0, self._from_store(workers), None)
        # The row before includes the start of the workers, the row after the health figures of the last step.
        rows = [row for row in read_log(self.trainer.folder.log) if row["kind"] == "train"]
        row = next(row for row in rows if row["step"] == 2 * steps)
        return {"volumes_per_second": row["samples_per_second"], "data_wait": row["data_wait"]}

    def _run(self, count: int, warm: int, source: Source, around: AbstractContextManager[Any] | None) -> None:
        """Run `count` steps and the last ones from step 1, because step 0 computes health figures."""
        trainer = self.trainer
        trainer.position = TrainingState(step=1)
        trainer.recipe = trainer.recipe.model_copy(update={"steps": 1 + count + _LAST})
        self._moments.clear()
        self.parts.clear()

        def batches(first: int, last: int) -> Generator[Samples]:
            for number, samples in enumerate(source(first, last)):
                if number == warm and self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                with around if around is not None and number == warm else nullcontext():
                    self._moments.append(Moment(self.device))
                    self.parts.step = number
                    yield samples

        trainer.feed = replace(self.feed, train=batches)
        trainer.run()
        wait(self.device)


def first_that_fits(run: Callable[[tuple[str, ...]], T]) -> tuple[tuple[str, ...], T] | None:
    """Call a function with settings that need increasingly less memory.

    Args:
        run: called with additional settings.

    Returns:
        The settings with which it fitted into memory, and its result; None if it never did.
    """
    for settings in LESS_MEMORY:
        try:
            return settings, run(settings)
        except (torch.OutOfMemoryError, UserError) as problem:
            if isinstance(problem, UserError) and "memory" not in str(problem):
                raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None
