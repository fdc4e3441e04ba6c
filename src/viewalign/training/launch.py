"""Starting the processes of a run, and sharing the decisions of the first process."""

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
from viewalign.utils.text import counted
from viewalign.weights.run_folder import RunFolder, open_folder

_LOST = re.compile(r"connection (closed|reset|refused)|peer|timed out|NCCL|broken pipe|socket", re.IGNORECASE)
"""Messages of a collective after another process has ended."""

_FIRST_PROCESS = "VIEWALIGN_FIRST_PROCESS"
"""Environment variable with the process that started the others."""


def launch(
    recipe: Recipe, group: int = 1, idle: bool = False, repeats: bool = True, start: bool = True
) -> tuple[Recipe, Fabric]:
    """Start the processes of a recipe and choose the settings that depend on the machine.

    Args:
        recipe: all settings.
        group: number of volumes that the method processes together.
        idle: whether some parameters get no gradient, so that processes must find them.
        repeats: whether torch has deterministic algorithms for all operations of the method.
        start: whether to start processes; otherwise only the settings are checked and chosen.

    Under torchrun or SLURM the processes already exist; otherwise this process starts the others with its own command
    line.

    Raises:
        UserError: a batch that is not divisible by the number of processes, or a missing device.
    """
    runtime = recipe.runtime
    _check_batch(recipe, group)
    first = os.environ.pop(_FIRST_PROCESS, None)
    if first:
        _end_with(int(first))
    _prepare_torch(runtime.threads, runtime.deterministic, repeats)
    accelerator: str = runtime.device
    if accelerator == "auto":
        accelerator = choose_device()
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device=cuda, but torch detects no GPU (see `viewalign doctor`). Set it to auto or cpu."
        )
    several = runtime.gpus * runtime.nodes > 1
    arithmetic.allow_tf32(runtime.tf32)
    chosen = arithmetic.settle(runtime.precision, accelerator).precision
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=runtime.gpus,
            num_nodes=runtime.nodes,
            strategy=DDPStrategy(find_unused_parameters=idle, broadcast_buffers=False) if several else "auto",
        )
    except (RuntimeError, ValueError) as problem:
        raise UserError(
            f"runtime.device={runtime.device} with runtime.gpus={runtime.gpus} is not available here: "
            f"{str(problem).splitlines()[0]}"
        ) from None
    if start:
        with _announce_first_process():
            fabric.launch()
        _check_agreement(chosen)
    return recipe.model_copy(update={"runtime": runtime.model_copy(update={"precision": chosen})}), fabric


def _check_batch(recipe: Recipe, group: int) -> None:
    """Check that the batch can be divided over processes, accumulated parts and groups of volumes.

    Raises:
        UserError: it cannot; the message names the nearest size.
    """
    runtime = recipe.runtime
    world = runtime.gpus * runtime.nodes
    if recipe.batch % world:
        fits = recipe.batch // world * world or world
        raise UserError(
            f"batch={recipe.batch} is not divisible by {world} processes (runtime.gpus × runtime.nodes); "
            f"use batch={fits} or {fits + world}."
        )
    share = recipe.batch // world
    if share % runtime.accumulate:
        raise UserError(
            f"runtime.accumulate={runtime.accumulate} does not divide {counted(share, 'volume')} of each process "
            f"(batch={recipe.batch} over {world}); use a divisor of {share}."
        )
    if share // runtime.accumulate % group:
        raise UserError(
            f"{recipe.method} processes volumes in groups of {group}: batch={recipe.batch} must be a multiple of "
            f"{group * world * runtime.accumulate} (runtime.gpus × runtime.nodes × runtime.accumulate × {group})."
        )


@contextmanager
def _announce_first_process() -> Iterator[None]:
    """Set the parent process in the environment of the processes that are started meanwhile.

    They cannot determine it later: a parent that died during their start is not their parent any more.
    """
    os.environ[_FIRST_PROCESS] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_FIRST_PROCESS, None)


def _end_with(parent: int) -> None:
    """End this process within seconds of its parent: a collective would wait for the parent for half an hour."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        print("The first process of the run has ended; this process ends too.", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Restore torch's settings of deterministic algorithms that `launch` changes for the whole process."""
    mode, search = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = search


def _prepare_torch(threads: int, deterministic: bool, repeats: bool) -> None:
    if threads:
        torch.set_num_threads(threads)
    # Every step has the same shapes, so that cuDNN searches for the fastest kernels once, as in nnU-Net.
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # With warnings only, attention would use its faster, non-deterministic gradient, although torch has another.
        torch.use_deterministic_algorithms(True, warn_only=not repeats)
    for name in ("lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _check_agreement(chosen: arithmetic.Precision) -> None:
    """Reject different machines whose processes would compute in different precisions.

    Raises:
        UserError: the precisions differ; raised in every process.
    """
    found = sorted(set(distributed.gather_objects(chosen)))
    if len(found) > 1:
        raise UserError(
            "The machines of this run differ: with runtime.precision=auto they would compute in "
            f"{' and '.join(found)}. Set runtime.precision to a precision that all of them support."
        )


@contextmanager
def report_lost_processes(folder: RunFolder, failures: Failures) -> Iterator[None]:
    """Turn the failure of a collective after the end of another process into a `UserError`.

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
            or "Another process of this run ended unexpectedly (see its message above, if any). The last "
            f"checkpoint in {folder.checkpoints} is intact; resume from it with --resume."
        ) from None


def destroy_process_group() -> None:
    """Destroy the process group while Python still runs; all processes call this at the end of a run.

    At the end of the interpreter, threads of the group were sometimes still active, and a run that had
    written everything ended with SIGABRT.
    """
    if distributed.world_size() > 1:
        torch.distributed.destroy_process_group()


@contextmanager
def lock_run_folder(fabric: Fabric, folder: RunFolder) -> Iterator[None]:
    """Lock the run's folder in the first process; an error is raised in all processes.

    Raises:
        UserError: another run uses it.
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
    """Raise an error of the first process in all processes; otherwise the others would wait for it."""
    problem = fabric.broadcast(problem)
    if problem:
        raise UserError(problem)


def open_run_folder(fabric: Fabric, recipe: Recipe, resume: bool) -> tuple[RunFolder, Recipe]:
    """Open the run's folder in the first process and send it to the others; an error is raised in all processes."""
    folder, problem = RunFolder.of(recipe), ""
    if fabric.is_global_zero:
        try:
            folder, recipe = open_folder(recipe, resume)
        except UserError as exclusion:
            problem = str(exclusion)
    _raise_on_all(fabric, problem)
    return folder, fabric.broadcast(recipe)


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Make an import of a module fail temporarily, unless it has been imported."""
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
