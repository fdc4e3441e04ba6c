"""The checks of a start and what it would do, without starting or writing anything."""

from __future__ import annotations

import logging
import os
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from viewalign.config import Recipe
from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.methods.registry import build_method, requirements_of
from viewalign.training.cost import step_flops
from viewalign.training.data import check_same, digest_of
from viewalign.training.estimate import seconds_per_step
from viewalign.training.facts import announce, device_name
from viewalign.training.launch import launch, torch_settings_kept
from viewalign.training.run import check_data, open_store, run_facts
from viewalign.training.simulation import simulated_peak
from viewalign.utils.console import duration
from viewalign.utils.memory import is_out_of_memory, memory_bytes
from viewalign.utils.precision import settle
from viewalign.utils.text import counted, size_text
from viewalign.weights import checkpoints, initial
from viewalign.weights.run_folder import RunFolder, check_folder, keep_precision

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DryRun:
    """What a start of a run would do.

    Attributes:
        folder: of the run.
        step: that it would start from, above 0 if it resumes.
        recipe: all settings, with the precision of this machine.
        facts: about data, network and device.
        memory: bytes of a step in one process: simulated, libraries need some more.
        available: bytes of the device's memory.
        seconds: expected for the remaining steps; None if there are none, or if a trial step ran out of memory.
    """

    folder: RunFolder
    step: int
    recipe: Recipe
    facts: dict[str, Any]
    memory: int
    available: int
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        costs = {"memory_bytes": self.memory, "available_bytes": self.available, "seconds": self.seconds}
        steps = {"step": self.step, "steps": self.recipe.steps, "batch": self.recipe.batch}
        return {"folder": self.folder.root, **steps, "precision": self.recipe.runtime.precision, **self.facts, **costs}

    def text(self) -> str:
        """Return what a start would do, as lines."""
        steps, folder, device = self.recipe.steps, self.folder, self.facts["device"]
        left, kept = steps - self.step, self.recipe.checkpoint.keep_every
        every = min(self.recipe.checkpoint.every, kept or steps, steps)
        if left <= 0:
            return f"The run in {folder.root} is finished: {counted(steps, 'step')}. Raise steps to extend it."
        time = "unknown" if self.seconds is None else f"about {duration(self.seconds)}, within a factor of two"
        files = ", ".join(path.name for path in (folder.config, folder.log, folder.messages, folder.report))
        begin = f"resume from step {self.step:,} and do {left:,} more" if self.step else f"do {counted(steps, 'step')}"
        lines = [
            f"Memory: {size_text(self.memory)} of {size_text(self.available)} ({device}); simulated, without libraries",
            f"Time:   {time}",
            f"Files:  {files}, and a checkpoint every {counted(every, 'step')}, in {folder.root}",
            f"Nothing was written. Without --dry-run, this would {begin}.",
        ]
        if self.memory > self.available:
            lines.insert(1, "        Too much: see runtime.recompute, runtime.accumulate, batch, views.patch_size.")
        return "\n".join(lines)


@torch_settings_kept()
def dry_run(recipe: Recipe, resume: bool = False, store: Store | None = None) -> DryRun:
    """Check everything that a start checks, and estimate memory and time; nothing is written to the run's folder.

    Initial weights of a public name are fetched into the cache, because whether they fit is checked.

    Args:
        recipe: all settings; `data` names a prepared store and `out` the run's folder.
        resume: whether the run would resume from the newest checkpoint in `out`.
        store: an open store, instead of `data`.

    Raises:
        UserError: whatever would prevent the start.
    """
    store = open_store(recipe) if store is None else store
    needs = requirements_of(recipe)
    requested = keep_precision(recipe) if resume else recipe
    recipe, fabric = launch(requested, needs.group, needs.has_unused_parameters, needs.deterministic, start=False)
    folder, recipe = check_folder(recipe, resume)
    _check_creatable(folder.root)
    torch.manual_seed(recipe.seed)
    method = build_method(recipe)
    subjects, split = check_data(recipe, needs, store)
    facts = {**run_facts(recipe, needs, store, subjects, split, method), "device": device_name(fabric)}
    announce(recipe, facts, fabric.device, folder)
    state = checkpoints.load_newest(folder.checkpoints, partial(_log.warning, "%s")) if resume else None
    if state is None:
        initial.start_run(method, recipe, folder, write=False)
    else:
        check_same(state, digest_of(store.ids, subjects, split), recipe)
    step = 0 if state is None else int(state["step"])
    return DryRun(
        folder=folder,
        step=step,
        recipe=recipe,
        facts=facts,
        memory=simulated_peak(recipe, recipe.runtime.precision, recipe.runtime.gpus * recipe.runtime.nodes),
        available=_available(fabric.device),
        seconds=_seconds(recipe, fabric.device, max(0, recipe.steps - step)),
    )


def _check_creatable(folder: Path) -> None:
    """Check that the run's folder can be written, or its first missing parent created.

    Raises:
        UserError: it cannot.
    """
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not present.is_dir() or not os.access(present, os.W_OK):
        raise UserError(f"The folder {folder} cannot be written: {present} is a file or is not yours to write to.")


def _available(device: torch.device) -> int:
    """Return the bytes of memory that a run on a device may use."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()


def _seconds(recipe: Recipe, device: torch.device, steps: int) -> float | None:
    """Return the expected seconds of some steps; None if none are left, or if a trial step ran out of memory.

    The part of a batch that is computed at once is timed, because a whole one may not fit into memory.
    """
    parts = recipe.runtime.accumulate
    alone = recipe.batch // (recipe.runtime.gpus * recipe.runtime.nodes * parts)
    if not steps:
        return None
    try:
        precision = settle(recipe.runtime.precision, device).precision
        flops = step_flops(recipe) * alone / recipe.batch
        found, _ = seconds_per_step(recipe, flops, precision, device.type, alone)
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        traceback.clear_frames(problem.__traceback__)  # they hold the tensors of the step
        return None
    return steps * parts * found
