"""A pretrained encoder beside a dataset's plans: a copy in nnssl's layout, named and checked by its contents.

A plan names the copy relative to the dataset's folder, so it holds no path of this machine and still works when the
folder is moved; and the file is one that nnU-Net's coming native commands read too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import plans
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.finetuning.segmentation.settings import FinetuneSettings, schedule_of
from viewalign.networks.registry import build_backbone
from viewalign.utils.io import atomic_write
from viewalign.weights import adaptation_plan, sources
from viewalign.weights.names import ENCODER

FOLDER = "viewalign_encoders"


def store(folder: Path, source: sources.Source, name: str, min_share: float) -> dict[str, Any]:
    """Write an encoder into a dataset's folder of plans, and return what a plan says of it.

    Args:
        folder: `nnUNet_preprocessed/DatasetXXX_NAME`.
        source: the encoder.
        name: what to call it; a digest of its weights is added.
        min_share: of the target encoder that it must cover.

    Raises:
        UserError: an encoder without a plan.
    """
    digest = digest_of(source)
    file = folder / FOLDER / f"{name}-{digest[:8]}.pth"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            torch.save(adaptation_plan.checkpoint(listed_weights(source), _raster_plan(source), 0), partial)
    return {"file": f"{FOLDER}/{file.name}", "digest": digest, "min_share": min_share}


def read_stored(folder: Path, told: dict[str, Any]) -> sources.Source:
    """Read an encoder that a plan names.

    Raises:
        UserError: it is gone, damaged, or not the one that the plan was made with.
    """
    file = folder / told["file"]
    if not file.is_file():
        raise UserError(
            f"The plan's encoder {file} is not there. Run `viewalign finetune segmentation` again, or copy it from "
            "where the plan was made."
        )
    source = sources.read_weights(file, order="dhw")
    if digest_of(source) != told["digest"]:
        raise UserError(f"{file} holds other weights than the plan was made with; make the plan again.")
    return source


def digest_of(source: sources.Source) -> str:
    """Return the SHA-256 of an encoder's names and numbers, whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(name for name in source.state if name.startswith(ENCODER[source.family])):
        digest.update(name.encode())
        digest.update(source.state[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def listed_weights(source: sources.Source) -> dict[str, Tensor]:
    """Return an encoder's weights as dynamic-network-architectures lists them, a tensor under each of its names.

    Raises:
        UserError: weights that do not fill the network that their plan describes.
    """
    network = pretraining_network(source)
    starts = ENCODER[source.family]
    # Names are taken from a real network, for which of its modules are listed twice is the library's business.
    return {name: value for name, value in network.state_dict().items() if name.startswith(starts)}


def pretraining_network(source: sources.Source) -> nn.Module:
    """Build the network of a pretraining with the encoder that it gave; the rest of it is fresh."""
    from viewalign.weights.loading import load_encoder_weights

    architecture = nnunet.architecture_of(source.plan, source.file)
    size = source.size or tuple(source.plan.get("pretrain_patch_size") or (160, 160, 160))
    if source.family == "primus" and source.grid is not None:
        d, h, w = (cells * side for cells, side in zip(source.grid, nnunet.strides_of(architecture), strict=True))
        size = (d, h, w)
    channels = int(source.plan.get("pretrain_num_input_channels", 1))
    network = nnunet.build_network(architecture, channels, 1, size)
    load_encoder_weights(network, source, size, 1.0, "the share of the pretraining's own network")
    return network


def _raster_plan(source: sources.Source) -> dict[str, Any]:
    """Return the source's plan; where its token order was repaired, the trainer's name must no longer tell the old."""
    plan = dict(source.plan)
    if source.family == "primus":
        name = str(plan.get("trainer_name") or source.trainer_name)
        plan["trainer_name"] = name if name.startswith("viewalign_") else f"viewalign_from_{name}"
    plan.setdefault("trainer_name", source.trainer_name)
    return plan


def plan_of(recipe: Recipe, preparation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the adaptation plan that a run of a recipe has; `preparation` is that of its store."""
    network = recipe.network
    return adaptation_plan.plan_of(network.name, network.channels, recipe.views.patch_size, recipe.method, preparation)


def write_untrained(recipe: Recipe, preparation: Mapping[str, Any], file: Path) -> Path:
    """Write the fresh network of a recipe as a checkpoint in nnssl's layout, whole or not at all; returns `file`."""
    network = recipe.network
    torch.manual_seed(recipe.seed)
    backbone = build_backbone(network.name, recipe.views.patch_size, network.channels, recipe.masking.block)
    named = backbone.state_dict().items()
    state = {name.removeprefix("net."): value for name, value in named if name.startswith("net.")}
    with atomic_write(file) as partial:
        torch.save(adaptation_plan.checkpoint(state, plan_of(recipe, preparation), 0), partial)
    return file


def check_before(settings: FinetuneSettings, recipe: Recipe, preparation: Mapping[str, Any]) -> None:
    """Check what can be known of a fine-tuning before its encoder is pretrained.

    Raises:
        UserError: a schedule without a step, a patch that the network cannot take, or no voxel size to be had.
    """
    plan = plan_of(recipe, preparation)
    architecture = plans.architecture_of(plan, recipe.network.name)
    schedule_of(settings, "primus" if plans.is_primus(architecture) else "resenc")
    if settings.patch_size is not None and settings.network == "pretraining":
        plans.check_patch(architecture, settings.patch_size)
    if settings.spacing == "pretraining" and preparation.get("spacing") is None and "nnssl_plans" not in preparation:
        raise UserError("images to pretrain on keep their own voxel sizes; set spacing to `dataset`, or to three mm")
