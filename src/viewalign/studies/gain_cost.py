"""An estimate of the time of `viewalign gain`, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from viewalign.config import Recipe
from viewalign.data.readers.headers import read_header
from viewalign.finetuning.classification.settings import load_training
from viewalign.finetuning.segmentation.settings import FinetuneSettings
from viewalign.recipes import loading as recipes
from viewalign.recipes.files import RECIPES
from viewalign.studies.cells import Cell, Grid
from viewalign.studies.labelled import LabelledCase
from viewalign.studies.settings import (
    FeatureProbeEvaluation,
    FinetuneEvaluation,
    SegmentationEvaluation,
    VoxelProbeEvaluation,
    without_machine,
)
from viewalign.tasks.manifest import read_manifest
from viewalign.tasks.spec import read_spec
from viewalign.training.cost import forward_flops, step_flops
from viewalign.training.estimate import seconds_per_step
from viewalign.utils.precision import choose_device, settle
from viewalign.utils.settings import checked

_START = 20.0
"""Seconds that nnU-Net's process needs before and after training."""
_TRAINING = 3.0
"""Forward and backward pass in forward passes."""


def estimate_seconds(grids: Sequence[Grid]) -> float:
    """Return the expected seconds of all unfinished cells: a step is timed, other work is scaled by its operations.

    Expect a factor of two either way: reading, preprocessing and nnU-Net's augmentation are not included. Cells that
    are in several grids are run once.
    """
    grid = grids[-1]
    arm = next((name for name, one in grid.study.arms.items() if not one.encoder and not one.untrained), None)
    recipe = grid.recipes[arm or next(iter(grid.study.arms)), grid.study.seeds[0]]
    device = choose_device(grid.study.device)
    flops = step_flops(recipe)
    step, _ = seconds_per_step(recipe, flops, settle(recipe.runtime.precision, device).precision, device)
    seconds: dict[Path, float] = {}
    for each in grids:
        remaining = [cell for cell in each.cells if not cell.done]
        alike = {(cell.arm, cell.evaluation): cell for cell in remaining}
        known = {key: _seconds(each, cell, step, flops) for key, cell in alike.items()}
        seconds |= {cell.folder: known[cell.arm, cell.evaluation] for cell in remaining}
    return sum(seconds.values())


def _seconds(grid: Grid, cell: Cell, step: float, flops: float) -> float:
    arm, recipe = grid.study.arms[cell.arm], grid.recipes[cell.arm, cell.seed]
    if cell.evaluation is None:
        return 0.0 if arm.untrained or arm.encoder else recipe.steps * step
    settings = grid.study.evaluation(cell.evaluation, cell.arm)
    external = grid.external.get(cell.arm)
    if external is not None:
        recipe = _of_network(external.network, external.plan.get("pretrain_patch_size"), recipe)
    if isinstance(settings, SegmentationEvaluation):
        return _START + _segmentation(grid, settings, recipe) * step / flops
    if isinstance(settings, FeatureProbeEvaluation | FinetuneEvaluation):
        return _task(settings, recipe) * step / flops
    cases = list(_test(grid))
    if isinstance(settings, VoxelProbeEvaluation) and grid.labelled:
        cases += grid.labelled.learn[: settings.shots]
    return sum(_windows(case, recipe) for case in cases) * forward_flops(recipe, False) * step / flops


def _of_network(network: str, size: Sequence[int] | None, recipe: Recipe) -> Recipe:
    """Return a recipe of another network, whose operations are counted."""
    name = f"mae-{network}"
    if name not in RECIPES.names():
        return recipe
    return recipes.load(name, [f"views.patch_size={list(size)}"] if size else [])


def _segmentation(grid: Grid, settings: SegmentationEvaluation, recipe: Recipe) -> float:
    """Return the operations of a fine-tuning and of the prediction of the test cases."""
    own = checked(FinetuneSettings, {**without_machine(settings.settings), "dataset": "", "encoder": ""})
    forward = forward_flops(recipe, True)
    if own.patch_size is not None:
        forward *= math.prod(own.patch_size) / math.prod(recipe.views.patch_size)
    images = own.epochs * own.batch * (own.iterations * _TRAINING + own.validation_iterations)
    mirrored = 8 if own.tta and own.mirror else 1
    return forward * (images + mirrored * sum(_windows(case, recipe) for case in _test(grid)))


def _task(settings: FeatureProbeEvaluation | FinetuneEvaluation, recipe: Recipe) -> float:
    spec = read_spec(settings.task)
    cases = read_manifest(Path(settings.task), spec)
    train = sum(case.split == "train" for case in cases)
    if settings.shots is not None:
        train = min(train, settings.shots * max(1, len(spec.classes)))
    epochs = load_training(settings.recipe, settings.settings).epochs if isinstance(settings, FinetuneEvaluation) else 0
    return forward_flops(recipe, False) * (len(cases) + train * _TRAINING * epochs)


def _test(grid: Grid) -> Sequence[LabelledCase]:
    return grid.labelled.test if grid.labelled else ()


def _windows(case: LabelledCase, recipe: Recipe) -> int:
    """Return the number of sliding windows with half overlap over an image, in its own voxels."""
    sides = zip(read_header(case.image).shape, recipe.views.patch_size, strict=True)
    return math.prod(max(1, math.ceil(2 * side / view) - 1) for side, view in sides)
