"""A pretraining run from a recipe: checks first, then the loop."""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from viewalign.config import Recipe, RuntimeSettings, ViewSettings
from viewalign.data.store import Store
from viewalign.data.worker_pool import default_workers
from viewalign.errors import UserError
from viewalign.methods.base import MethodRequirements
from viewalign.methods.registry import build_method, requirements_of
from viewalign.networks.backbone import backbones
from viewalign.training import data, optimizers
from viewalign.training.data import DataModule, Samples
from viewalign.training.facts import announce, data_facts, device_name
from viewalign.training.failures import Failures, shortage_reported
from viewalign.training.launch import (
    Fabric,
    destroy_process_group,
    launch,
    lock_run_folder,
    open_run_folder,
    report_lost_processes,
    torch_settings_kept,
)
from viewalign.training.logs import log_file
from viewalign.training.loop import Page, Probe, Trainer
from viewalign.training.sampling import admitted, check_channels, check_contrast, check_sizes, weights_of
from viewalign.training.signals import StopRequest
from viewalign.utils.precision import settle
from viewalign.utils.rng import make_rng
from viewalign.views.alignment import align
from viewalign.views.batch import build_views, sample_views
from viewalign.views.latentcampus import misplacement, sample_latentcampus
from viewalign.views.samples import SampleReader
from viewalign.views.sampling import ViewSamplingConfig
from viewalign.weights import checkpoints, initial
from viewalign.weights.run_folder import RunFolder, keep_precision, write_config

_log = logging.getLogger(__name__)

_MISALIGNED = 0.01
"""Voxels; ten times the largest error observed with any exact geometry."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        folder: the run's folder.
        step, steps: steps done, and steps of the whole run.
        signal: the received signal, or None. A run is finished even if a signal came in its last step.
        first: whether this process reports the result; one of several does.
    """

    folder: RunFolder
    step: int
    steps: int
    signal: int | None
    first: bool

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps

    @property
    def exit_code(self) -> int:
        """0 for a finished run, and 128 + the signal's number for a run that a signal stopped, as in shells.

        Of several processes only the first ends with it: launchers kill all processes if one of them fails.
        """
        return 0 if self.finished or not self.first else 128 + (self.signal or signal.SIGTERM)

    @property
    def stops_caller(self) -> int | None:
        """The exit code for a caller that continues after the run, if a signal was received, even in the last step."""
        if self.finished and self.signal is None:
            return None
        return 128 + (self.signal or signal.SIGTERM) if self.first else 0


@torch_settings_kept()
def pretrain(
    recipe: Recipe,
    resume: Literal["auto"] | bool = False,
    store: Store | None = None,
    probe: Probe | None = None,
    page: Page | None = None,
) -> RunResult:
    """Run a recipe to its end, or to the next Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP.

    Args:
        recipe: all settings; `data` names a prepared store and `out` the run's folder.
        resume: whether to continue from the newest checkpoint in `out`.
        store: an open store, instead of `data`.
        probe: evaluates the encoder on the schedule of `validate.probe` (`evaluation.online_probe.make_probe`).
        page: writes the run's page at the start, now and then, and at the end (`reports.run.LivePage`).

    Raises:
        UserError: an invalid recipe, store or folder; raised before training.
    """
    if recipe.validate_.probe is not None and probe is None:
        raise UserError("validate.probe needs `viewalign pretrain`, or pretrain(..., probe=make_probe(recipe)).")
    store = open_store(recipe) if store is None else store
    requirements = requirements_of(recipe)
    requested = keep_precision(recipe) if resume else recipe
    recipe, fabric = launch(
        requested, requirements.group, requirements.has_unused_parameters, requirements.deterministic
    )
    folder, recipe = open_run_folder(fabric, recipe, bool(resume))
    with (
        lock_run_folder(fabric, folder),
        log_file(folder.messages, fabric.is_global_zero),
        Failures() as failures,
        shortage_reported(recipe),
    ):
        trainer = assemble(recipe, requirements, store, folder, fabric)
        trainer.probe, trainer.page = probe, page
        trainer.facts |= {"device": device_name(fabric), "started": time.strftime("%Y-%m-%d %H:%M")}
        trainer.facts["precision"] = asdict(settle(requested.runtime.precision, fabric.device))
        _begin(trainer, bool(resume))
        stop = StopRequest(fabric.world_size == 1, trainer.last_words)
        with stop, report_lost_processes(folder, failures):
            trainer.run(stop)
        if page is not None and fabric.is_global_zero:
            page(folder.root, True)
        fabric.barrier()
    destroy_process_group()
    return RunResult(folder, trainer.position.step, recipe.steps, stop.signal, fabric.is_global_zero)


def _begin(trainer: Trainer, resume: bool) -> None:
    """Resume from the newest checkpoint, or start from the recipe's initial weights; store the recipe."""
    folder, recipe = trainer.folder, trainer.recipe
    first = trainer.fabric.is_global_zero
    announce(recipe, trainer.facts, trainer.fabric.device, folder)
    state = _resumed_state(trainer) if resume else None
    if state is not None:
        data.check_same(state, trainer.feed.digest, recipe)
        trainer.restore(state)
        trainer.remember("resumed", device=trainer.facts["device"], time=trainer.facts["started"])
        before = int(state["recipe"]["steps"])
        if before < recipe.steps:
            trainer.note(
                "extended",
                f"The run was started with steps={before} and is extended to {recipe.steps}. From step "
                f"{trainer.position.step} on, the learning rate and a teacher's momentum follow the schedule of "
                f"{recipe.steps} steps.",
            )
        _log.info("Resuming from step %d of %d.", trainer.position.step, recipe.steps)
    else:
        initial.start_run(trainer.method, recipe, folder, first)
    if first:
        write_config(folder, recipe)


def _resumed_state(trainer: Trainer) -> dict[str, Any] | None:
    """Return the state to resume from; the first process chooses the checkpoint for all.

    Raises:
        UserError: another process cannot read the chosen checkpoint.
    """
    fabric, folder = trainer.fabric, trainer.folder.checkpoints
    state = None
    if fabric.is_global_zero:
        state = checkpoints.resume_newest(folder, partial(trainer.note, "checkpoint_damaged"))
    step: int | None = fabric.broadcast(None if state is None else state["step"])
    if step is None or fabric.is_global_zero:
        return state
    return checkpoints.load(checkpoints.path_of(folder, step))


def open_store(recipe: Recipe) -> Store:
    """Open the store that a recipe names.

    Raises:
        UserError: it names none, or the store is missing or has no volumes.
    """
    if not recipe.data:
        raise UserError("There is no store to pretrain on: name a store written by `viewalign prepare`.")
    store = Store.open(Path(recipe.data))
    if len(store) == 0:
        raise UserError(f"The store {recipe.data} has no volumes.")
    return store


def assemble(
    recipe: Recipe, requirements: MethodRequirements, store: Store, folder: RunFolder, fabric: Fabric
) -> Trainer:
    """Build method, optimizer and data feed, and log the facts about the data."""
    torch.manual_seed(recipe.seed)
    method = build_method(recipe)
    prepare_networks(method, recipe.runtime)
    subjects, split = check_data(recipe, requirements, store)
    settings = recipe.optim
    optimizer = optimizers.build_optimizer(
        method,
        settings.name,
        settings.lr,
        settings.weight_decay,
        settings.momentum,
        settings.betas,
        on_gpu=fabric.device.type != "cpu",
    )
    feed = _feed(recipe, requirements, store, subjects, split, fabric)
    facts = run_facts(recipe, requirements, store, subjects, split, method)
    return Trainer(fabric, method, optimizer, feed, recipe, folder, facts, store.recipe)


def check_data(recipe: Recipe, requirements: MethodRequirements, store: Store) -> tuple[NDArray[np.int64], data.Split]:
    """Return the subject number of each volume and the split into training and validation.

    Raises:
        UserError: the recipe cannot be trained on the store's volumes.
    """
    subjects = data.number_subjects(store.groups)
    sampling = recipe.sampling
    inside = admitted(store, sampling.modalities, sampling.max_quality_score, sampling.weights)
    check_channels(store, inside, recipe.network.channels)
    share = recipe.validate_.share
    split = data.split_of(store.groups, store.held_out, share, recipe.seed)
    if len(split.train) == 0:
        raise UserError(f"validate.share={share:g} holds out all subjects. Lower it; with 0 none is held out.")
    split = data.only(split, inside)
    if len(split.train) == 0:
        raise UserError("The filters of `sampling` leave only held-out subjects and no training volumes.")
    check_contrast(store, split.train)
    if requirements.min_valid:
        config = view_sampling_config(recipe.views)
        check_sizes(store, split.train, requirements.sampler, config, requirements.min_valid)
    count = len(np.unique(subjects[split.train]))
    if requirements.needs_multiple_subjects and count < 2:
        raise UserError(
            f"This method needs volumes of at least two subjects, and the store has {count} to train on; "
            f"{requirements.needs_multiple_subjects} If it shows several people, index them with a subject_pattern."
        )
    return subjects, split


def prepare_networks(method: torch.nn.Module, runtime: RuntimeSettings) -> None:
    """Set up how the networks of a method are computed, which does not change their results."""
    for network in backbones(method):
        network.recompute = runtime.recompute
        if runtime.compile:
            network.compile_blocks()


def run_facts(
    recipe: Recipe,
    requirements: MethodRequirements,
    store: Store,
    subjects: NDArray[np.int64],
    split: data.Split,
    method: torch.nn.Module,
) -> dict[str, Any]:
    """Return facts about the run's data and geometry for the report.

    Raises:
        UserError: features would be compared at wrong positions; see `alignment_error`.
    """
    facts = data_facts(recipe, store, subjects, split, method)
    return {**facts, "alignment_error": alignment_error(recipe)} if requirements.aligned else facts


def view_sampling_config(views: ViewSettings) -> ViewSamplingConfig:
    """Unpack the geometry's settings."""
    return ViewSamplingConfig(
        size=views.patch_size,
        overlap=views.overlap,
        mirror=views.mirror,
        p_rotation=views.p_rotation,
        rotation_degrees=views.rotation_degrees,
        p_scale=views.p_scale,
        scale=views.scale,
        independent=views.independent,
    )


def alignment_error(recipe: Recipe) -> float:
    """Return the distance in voxels between the positions that a run with this recipe compares; 0 up to rounding.

    Raises:
        UserError: it is not 0 with the exact geometry, so that results could not be trusted.
    """
    if recipe.geometry == "latentcampus":
        return released_error(recipe.views)
    error = ramp_error(recipe.views)
    if error > _MISALIGNED:
        raise UserError(
            f"Aligned coordinates are {error:.3g} voxels apart instead of 0. This is a "
            "bug of the program or of this machine's arithmetic: run `viewalign doctor`, and report it."
        )
    return error


def ramp_error(views: ViewSettings, seeds: int = 4) -> float:
    """Sample and align views of coordinates instead of an image; return the largest error in voxels."""
    shape = tuple(min(2 * n, n + 48) for n in views.patch_size)
    ramp = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))
    worst = 0.0
    for seed in range(seeds):
        pair = sample_views(ramp, views.patch_size, seed, view_sampling_config(views))
        a, b, weight = align(pair.views[0], pair.views[1], pair.to_volume[0], pair.to_volume[1], pair.size, pair.valid)
        whole = align(
            pair.valid[0].float(), pair.valid[1].float(), pair.to_volume[0], pair.to_volume[1], pair.size, pair.valid
        )
        counts = (weight > 0) & (whole[0][..., 0] > 1 - 1e-6) & (whole[1][..., 0] > 1 - 1e-6)
        worst = max(worst, float(((a - b).abs().amax(-1) * counts).max()))
    return worst


def released_error(views: ViewSettings, seeds: int = 4) -> float:
    """Do the same with the geometry of the released code, whose error is expected."""
    d, h, w = (min(2 * n, n + 48) for n in views.patch_size)
    pairs = [
        sample_latentcampus(make_rng(seed, "ramp"), (d, h, w), view_sampling_config(views)) for seed in range(seeds)
    ]
    return float(misplacement(pairs, views.patch_size).max())


def _feed(
    recipe: Recipe, requirements: MethodRequirements, store: Store, subjects: Any, split: data.Split, fabric: Fabric
) -> DataModule:
    views, runtime = recipe.views, recipe.runtime
    on_gpu = fabric.device.type == "cuda"
    read: dict[str, Any] = {
        "source": store,
        "subjects": subjects,
        "config": view_sampling_config(views),
        "batch": recipe.batch,
        "seed": recipe.seed,
        "min_foreground": views.min_foreground,
        "redraws": views.redraws,
        "sampler": requirements.sampler,
    }
    load: dict[str, Any] = {
        "batch": recipe.batch,
        "workers": data.worker_count(runtime.workers, on_gpu, os.cpu_count() or 1, runtime.gpus, default_workers()),
        "pin": on_gpu,
        "rank": fabric.global_rank,
        "world": fabric.world_size,
    }
    weights = weights_of(store, split.train, recipe.sampling.by, recipe.sampling.weights)
    distinct = requirements.distinct_subjects
    train = SampleReader(volumes=split.train, purpose="train", weights=weights, distinct=distinct, **read)
    held_out = SampleReader(volumes=split.validation, purpose="validation", **read) if len(split.validation) else None

    def build(samples: Samples, plain: bool) -> Any:
        changes = None if plain else views.photometric
        return build_views(samples, views.patch_size, changes, fabric.device, recipe.seed)

    return DataModule(
        train=partial(data.batches, train, **load),
        validation=partial(data.batches, held_out, 0, recipe.validate_.batches, **load) if held_out else None,
        build=build,
        volumes=len(split.train),
        name_of=lambda k: str(store.ids[k]),
        aligned=requirements.aligned,
        digest=data.digest_of(store.ids, subjects, split),
    )
