"""Store pretrained encoders next to a dataset's plans, as checkpoints in nnssl's layout.

A plan names the file relative to the dataset's folder, so that the folder can be moved, and a digest of the weights.
nnU-Net's native commands for pretrained encoders read the same file.
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
from viewalign.finetuning.segmentation.settings import FinetuneSettings, schedule_of
from viewalign.networks.registry import build_backbone
from viewalign.utils.io import atomic_write
from viewalign.weights import adaptation_plan, sources
from viewalign.weights.names import ENCODER

FOLDER = "viewalign_encoders"


def store(folder: Path, source: sources.Source, name: str, min_share: float) -> dict[str, Any]:
    """Write an encoder into a dataset's folder of plans, and return its entry in a plan.

    Args:
        folder: `nnUNet_preprocessed/DatasetXXX_NAME`.
        source: the encoder.
        name: of the file, to which a digest of the weights is added.
        min_share: fraction of the target encoder that must be loaded.

    Raises:
        UserError: an encoder without a plan.
    """
    digest = digest_of(source)
    file = folder / FOLDER / f"{name}-{digest[:8]}.pth"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            root = adaptation_plan.checkpoint(listed_weights(source), _raster_plan(source), 0, source.cited())
            torch.save(root, partial)
    return {"file": f"{FOLDER}/{file.name}", "digest": digest, "min_share": min_share}


def read_stored(folder: Path, entry: dict[str, Any]) -> sources.Source:
    """Read the encoder of a plan's entry.

    Raises:
        UserError: the file is missing or damaged, or has other weights.
    """
    file = folder / entry["file"]
    if not file.is_file():
        raise UserError(
            f"The plan's encoder {file} is missing. Run `viewalign finetune segmentation` again, or copy the file from "
            "the machine on which the plan was created."
        )
    source = sources.read_weights(file, order="dhw")
    if digest_of(source) != entry["digest"]:
        raise UserError(f"{file} has other weights than the plan; create the plan again.")
    return source


def digest_of(source: sources.Source, decoder: bool = False) -> str:
    """Return the SHA-256 of the names and values of an encoder's parameters, independent of the file format.

    With `decoder`, all parameters count.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in source.state if decoder or name.startswith(ENCODER[source.family])):
        digest.update(name.encode())
        digest.update(source.state[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def listed_weights(source: sources.Source) -> dict[str, Tensor]:
    """Return an encoder's weights under all names that dynamic-network-architectures gives them.

    Raises:
        UserError: weights that do not match the network of their plan.
    """
    network = pretraining_network(source)
    starts = ENCODER[source.family]
    # Names come from a network, as the library decides which modules it lists twice.
    return {name: value for name, value in network.state_dict().items() if name.startswith(starts)}


def pretraining_network(source: sources.Source) -> nn.Module:
    """Build the network of a pretraining with its encoder; other weights are random."""
    from viewalign.weights.loading import load_encoder_weights

    architecture = plans.architecture_of(source.plan, source.file)
    size = source.size or tuple(source.plan.get("pretrain_patch_size") or (160, 160, 160))
    if source.family == "primus" and source.grid is not None:
        d, h, w = (cells * side for cells, side in zip(source.grid, plans.strides_of(architecture), strict=True))
        size = (d, h, w)
    channels = int(source.plan.get("pretrain_num_input_channels", 1))
    network = plans.build_network(architecture, channels, 1, size)
    load_encoder_weights(network, source, size, 1.0, "the share of the pretraining network")
    return network


def _raster_plan(source: sources.Source) -> dict[str, Any]:
    """Return the source's plan. A Primus gets another trainer name, as the name implies the token order."""
    plan = dict(source.plan)
    if source.family == "primus":
        name = str(plan.get("trainer_name") or source.trainer_name)
        plan["trainer_name"] = name if name.startswith("viewalign_") else f"viewalign_from_{name}"
    plan.setdefault("trainer_name", source.trainer_name)
    return plan


def plan_of(recipe: Recipe, preparation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the adaptation plan of a run of a recipe; `preparation` is that of its store."""
    network = recipe.network
    return adaptation_plan.plan_of(network.name, network.channels, recipe.views.patch_size, recipe.method, preparation)


def write_untrained(recipe: Recipe, preparation: Mapping[str, Any], file: Path) -> Path:
    """Write the untrained network of a recipe as a checkpoint in nnssl's layout and return `file`."""
    network = recipe.network
    torch.manual_seed(recipe.seed)
    backbone = build_backbone(network.name, recipe.views.patch_size, network.channels, recipe.masking.block)
    named = backbone.state_dict().items()
    state = {name.removeprefix("net."): value for name, value in named if name.startswith("net.")}
    with atomic_write(file) as partial:
        torch.save(adaptation_plan.checkpoint(state, plan_of(recipe, preparation), 0), partial)
    return file


def check_before(settings: FinetuneSettings, plan: Mapping[str, Any], name: str) -> None:
    """Check a fine-tuning before its encoder is pretrained.

    Args:
        settings: of the fine-tuning.
        plan: the encoder's adaptation plan.
        name: of the encoder, for messages.

    Raises:
        UserError: an invalid schedule or patch, or an unknown voxel size.
    """
    architecture = plans.architecture_of(plan, name)
    schedule_of(settings, "primus" if plans.is_primus(architecture) else "resenc")
    if settings.patch_size is not None and settings.network == "pretraining":
        plans.check_patch(architecture, settings.patch_size)
    configurations = plan["pretrain_plan"]["configurations"].values()
    if settings.spacing == "pretraining" and all(one.get("spacing") is None for one in configurations):
        raise UserError(
            "the pretraining images keep their own voxel sizes; set spacing to `dataset`, or to three values in mm"
        )
