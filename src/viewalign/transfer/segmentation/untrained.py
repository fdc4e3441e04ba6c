"""A network that was never trained, as an encoder to plan with: what a baseline from scratch has in place of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.formats import nnunet
from viewalign.formats.nnssl import adaptation
from viewalign.networks.registry import build_backbone
from viewalign.transfer.segmentation.settings import FinetuneSettings, schedule_of
from viewalign.writing import whole


def plan_of(recipe: Recipe, preparation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the adaptation plan that a run of a recipe has; `preparation` is that of its store."""
    network = recipe.network
    return adaptation.plan_of(network.name, network.channels, recipe.views.size, recipe.method, preparation)


def write_untrained(recipe: Recipe, preparation: Mapping[str, Any], file: Path) -> Path:
    """Write the fresh network of a recipe as a checkpoint in nnssl's layout, whole or not at all; returns `file`."""
    network = recipe.network
    torch.manual_seed(recipe.seed)
    backbone = build_backbone(network.name, recipe.views.size, network.channels, recipe.masking.block)
    named = backbone.state_dict().items()
    state = {name.removeprefix("net."): value for name, value in named if name.startswith("net.")}
    with whole(file) as partial:
        torch.save(adaptation.checkpoint(state, plan_of(recipe, preparation), 0), partial)
    return file


def check_before(settings: FinetuneSettings, recipe: Recipe, preparation: Mapping[str, Any]) -> None:
    """Check what can be known of a fine-tuning before its encoder is pretrained.

    Raises:
        UserError: a schedule without a step, a patch that the network cannot take, or no voxel size to be had.
    """
    plan = plan_of(recipe, preparation)
    architecture = nnunet.architecture_of(plan, recipe.network.name)
    schedule_of(settings, "primus" if nnunet.is_primus(architecture) else "resenc")
    if settings.patch is not None and settings.network == "pretraining":
        nnunet.check_patch(architecture, settings.patch)
    if settings.spacing == "pretraining" and preparation.get("spacing") is None and "nnssl_plans" not in preparation:
        raise UserError("images to pretrain on keep their own voxel sizes; set spacing to `dataset`, or to three mm")
