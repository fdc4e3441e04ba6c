"""Starting the processes of a run, and agreeing on what one of them decides."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.training.failures import Failures
from viewalign.utils import distributed
from viewalign.utils import precision as arithmetic
from viewalign.utils.locks import lock_folder
from viewalign.utils.precision import choose_device
from viewalign.weights.run_folder import RunFolder, open_folder

_LOST = re.compile(r"connection (closed|reset|refused)|peer|timed out|NCCL|broken pipe|socket", re.IGNORECASE)
"""What a collective says when another process has ended."""

_FIRST_PROCESS = "VIEWALIGN_FIRST_PROCESS"
"""Tells the processes that a run starts who started them, from their first line on."""


def launch(recipe: Recipe, group: int = 1, idle: bool = False, repeats: bool = True) -> tuple[Recipe, Fabric]:
    """Start the processes that a recipe asks for and settle what it leaves to the machine.

    Args:
        recipe: all settings.
        group: how many volumes the method sees together.
        idle: whether some parameters get no gradient, so that processes must find out which.
        repeats: whether torch has deterministic algorithms for all that the method computes.

    Under torchrun or SLURM the processes are there already; else this one starts the others by its own command line.

    Raises:
        UserError: a batch that does not divide over the processes, or a device that is not there.
    """
    runtime = recipe.runtime
    world = runtime.gpus * runtime.nodes
    if recipe.batch % world:
        fits = recipe.batch // world * world or world
        raise UserError(
            f"batch={recipe.batch} does not divide over {world} processes (runtime.gpus × runtime.nodes); "
            f"take batch={fits} or {fits + world}."
        )
    share = recipe.batch // world
    if share % runtime.accumulate:
        raise UserError(
            f"runtime.accumulate={runtime.accumulate} does not divide the {share} volumes that each process has "
            f"(batch={recipe.batch} over {world}); take a divisor of {share}."
        )
    if share // runtime.accumulate % group:
        raise UserError(
            f"{recipe.method} sees volumes in groups of {group}: batch={recipe.batch} must be a multiple of "
            f"{group * world * runtime.accumulate} (runtime.gpus × runtime.nodes × runtime.accumulate × {group})."
        )
    first = os.environ.pop(_FIRST_PROCESS, None)
    if first:
        _end_with(int(first))
    _prepare_torch(runtime.threads, runtime.deterministic, repeats)
    accelerator: str = runtime.device
    if accelerator == "auto":
        accelerator = choose_device()
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device=cuda, but torch finds no GPU here (see `viewalign doctor`). Set it to auto or cpu."
        )
    arithmetic.allow_tf32(runtime.tf32)
    chosen = arithmetic.settle(runtime.precision, accelerator).precision
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=runtime.gpus,
            num_nodes=runtime.nodes,
            strategy=DDPStrategy(find_unused_parameters=idle, broadcast_buffers=False) if world > 1 else "auto",
        )
    except (RuntimeError, ValueError) as problem:
        raise UserError(
            f"runtime.device={runtime.device} with runtime.gpus={runtime.gpus} cannot be had here: "
            f"{str(problem).splitlines()[0]}"
        ) from None
    with _announce_first_process():
        fabric.launch()
    _check_agreement(chosen)
    return recipe.model_copy(update={"runtime": runtime.model_copy(update={"precision": chosen})}), fabric


@contextmanager
def _announce_first_process() -> Iterator[None]:
    """Tell the processes that are started meanwhile who starts them.

    They cannot ask later: a parent that died while they came up is not their parent any more.
    """
    os.environ[_FIRST_PROCESS] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_FIRST_PROCESS, None)


def _end_with(parent: int) -> None:
    """End this process within seconds of the one that started it: a collective would wait for it for half an hour."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        print("The first process of the run has ended; this one ends too.", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _prepare_torch(threads: int, deterministic: bool, repeats: bool) -> None:
    if threads:
        torch.set_num_threads(threads)
    # Every step has the same shapes, so that cuDNN's search for the fastest kernels is paid once, as in nnU-Net.
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Where it only warns, attention takes the faster gradient, which does not repeat, though torch has another.
        torch.use_deterministic_algorithms(True, warn_only=not repeats)
    for name in ("lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _check_agreement(chosen: arithmetic.Precision) -> None:
    """Refuse machines of different kinds, whose processes would compute in different precisions.

    Raises:
        UserError: they would; raised in every process.
    """
    found = sorted(set(distributed.gather_objects(chosen)))
    if len(found) > 1:
        raise UserError(
            "The machines of this run differ: with runtime.precision=auto they would compute in "
            f"{' and '.join(found)}. Set runtime.precision to one that all of them have."
        )


@contextmanager
def report_lost_processes(folder: RunFolder, failures: Failures) -> Iterator[None]:
    """Turn the failure of a collective, when another process has ended, into a sentence.

    Raises:
        UserError: another process of the run ended.
    """
    try:
        yield
    except RuntimeError as problem:
        if distributed.world_size() == 1 or not _LOST.search(str(problem)):
            raise
        raise UserError(
            failures.sentence
            or "Another process of this run ended unexpectedly (its message, if it left one, stands above). The last "
            f"checkpoint in {folder.checkpoints} is intact; --resume continues from it."
        ) from None


def destroy_process_group() -> None:
    """Take the group of processes apart while Python still runs; all of them call it, at the end of a run.

    Left to the end of the interpreter, threads of the group were once in a while caught at work, and a run that had
    written everything ended with SIGABRT.
    """
    if distributed.world_size() > 1:
        torch.distributed.destroy_process_group()


@contextmanager
def lock_run_folder(fabric: Fabric, folder: RunFolder) -> Iterator[None]:
    """Hold the run's folder on the first process; a refusal is raised by all alike.

    Raises:
        UserError: another run is at work in it.
    """
    with ExitStack() as stack:
        problem = ""
        if fabric.is_global_zero:
            try:
                stack.enter_context(lock_folder(folder.root))
            except UserError as exclusion:
                problem = str(exclusion)
        _raise_on_all(fabric, problem)
        yield


def _raise_on_all(fabric: Fabric, problem: str) -> None:
    """Raise on all processes what the first one refuses, if anything: one that went on would wait for the others."""
    if fabric.world_size > 1:
        problem = fabric.broadcast(problem)
    if problem:
        raise UserError(problem)


def open_run_folder(fabric: Fabric, recipe: Recipe, resume: bool) -> tuple[RunFolder, Recipe]:
    """Open the run's folder on the first process and send it to the others; an error is raised by all alike."""
    folder, problem = RunFolder.of(recipe), ""
    if fabric.is_global_zero:
        try:
            folder, recipe = open_folder(recipe, resume)
        except UserError as exclusion:
            problem = str(exclusion)
    _raise_on_all(fabric, problem)
    if fabric.world_size > 1:
        recipe = Recipe.model_validate(fabric.broadcast(recipe.model_dump(by_alias=True)))
    return folder, recipe


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let an import of a module fail for a while, unless it has been imported."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _without("torchmetrics"):
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

__all__ = ["DDPStrategy", "Fabric"]
