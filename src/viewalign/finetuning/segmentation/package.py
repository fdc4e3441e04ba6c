"""For nnU-Net without viewalign: a start that its own training takes, and a model that its own prediction takes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation import environment, planning
from viewalign.finetuning.segmentation import nnunet as running
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.finetuning.segmentation.dataset import Dataset
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.predict import KEY
from viewalign.finetuning.segmentation.schedule import published
from viewalign.finetuning.segmentation.settings import encoder_name
from viewalign.weights import files, loading
from viewalign.weights import files as nnunet_models
from viewalign.weights.initial import read_weight_source, write_report

_FROM_SCRATCH = {"unet": "nnUNetTrainer_warmup", "primus": "nnUNet_Primus_{}_Trainer"}
_INFERENCE = {"unet": "nnUNetTrainer", "primus": "nnUNet_Primus_{}_Trainer"}
_SEED = 0
_TOLD = (
    *("channel_names", "modality", "labels", "regions_class_order", "file_ending"),
    *("overwrite_image_reader_writer", KEY),
)
"""What prediction reads of `dataset.json`. The rest names cases, or is prose that may."""
_ENCODER = ("file", "digest", "min_share")


@dataclass(frozen=True)
class Start:
    """What was written for nnU-Net's own training.

    Attributes:
        plan: in `nnUNet_preprocessed`.
        checkpoint: the complete network for `-pretrained_weights`.
        commands: to type next.
    """

    plan: Path
    checkpoint: Path
    commands: list[str]


def export_start(encoder: str, asked: str, out: Path, plans: str | None = None, patch: Any = None) -> Start:
    """Write a plan and a complete, dataset-specific checkpoint for unmodified nnU-Net.

    The checkpoint holds the whole network of the plan: the pretrained encoder, and a decoder as it would begin. The
    plan also carries `pretrain_info`, by which nnU-Net's coming native commands read the same encoder, and it works
    with our trainer too.

    Args:
        encoder: see `transfer.weights.read_source`.
        asked: the dataset's number, name or folder.
        out: folder for the checkpoint and the report of what was loaded.
        plans: the plan's name.
        patch: (D, H, W) in voxels.

    Raises:
        UserError: nnU-Net's folders are not set, or a network that stock nnU-Net has no trainer for.
    """
    folders = _named_folders()
    environment.enter(folders, 1, "cpu")
    data = datasets.find(asked, folders.raw)
    datasets.link(data, folders.raw)
    source = read_weight_source(encoder)
    name = plans or f"viewalign_{encoder_name(encoder)}"
    choices = nnunet.Choices(name, patch=patch)
    architecture = nnunet.architecture_of(source.plan, source.file)
    trainer = _stock_trainer(architecture, _FROM_SCRATCH)
    out.mkdir(parents=True, exist_ok=True)
    with running.quietly(out / "nnunet.log"):
        base = planning.base_plan(data, folders, 1)
        planned = planning.write_plan(data, folders, base, source, choices, published(source.family), 0.9, False)
    d, h, w = planned.configuration["patch_size"]
    torch.manual_seed(_SEED)
    network = nnunet.build_network(planned.configuration["architecture"], data.channels, heads(data), (d, h, w))
    write_report(loading.load_encoder_weights(network, source, (d, h, w)), out / "transfer.json")
    file = out / f"{name}_{data.name}.pth"
    torch.save({"network_weights": {key: value.detach().cpu() for key, value in network.state_dict().items()}}, file)
    return Start(planned.folder / f"{name}.json", file, _commands(data, name, trainer, file))


def _named_folders() -> Folders:
    unset = [key for key in ("raw", "preprocessed", "results") if not os.environ.get(f"nnUNet_{key}")]
    if unset:
        raise UserError(
            f"nnUNet_{unset[0]} is not set. Stock nnU-Net looks for plans where nnUNet_raw, nnUNet_preprocessed and "
            "nnUNet_results say; set all three."
        )
    folders = Folders.of(Path.cwd())
    folders.make()
    return folders


def heads(data: Dataset) -> int:
    """Return how many outputs nnU-Net's network has: regions, or classes with background."""
    if any(isinstance(value, list | tuple) for value in data.description["labels"].values()):
        return len(data.labels)
    return len(data.labels) + 1


def _stock_trainer(architecture: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return nnU-Net's own trainer that builds a network.

    Raises:
        UserError: it has none.
    """
    if not nnunet.is_primus(architecture):
        return names["unet"]
    letter = nnunet.primus_preset(architecture)
    if letter is None:
        raise UserError(
            "Stock nnU-Net has trainers for Primus S, B, M and L with tokens of 8³ alone, not for this one. Use "
            '`viewalign finetune segmentation`, or nnU-Net\'s commands after eval "$(viewalign nnunet env)".'
        )
    return names["primus"].format(letter)


def _commands(data: Dataset, name: str, trainer: str, file: Path) -> list[str]:
    configuration = nnunet.CONFIGURATION
    return [
        f"nnUNetv2_preprocess -d {data.id} -plans_name {name} -c {configuration} -np 4",
        f"nnUNetv2_train {data.id} {configuration} 0 -p {name} -tr {trainer} -pretrained_weights {file}",
        f"nnUNetv2_predict -d {data.id} -i IMAGES -o OUT -c {configuration} -p {name} -tr {trainer} -f 0",
    ]


def export_model(run: Path, out: Path) -> list[Path]:
    """Write a fine-tuned model for nnU-Net's own prediction where viewalign is not installed.

    Args:
        run: a fine-tuning's folder.
        out: where to; laid out as nnU-Net's folder of results.

    Returns:
        The model's folder in a list, ready for `nnUNetv2_predict_from_modelfolder`.

    Raises:
        UserError: nothing is trained yet, or a network that stock nnU-Net cannot build.
    """
    results = files.read_json(run / "results.json")
    if not results:
        raise UserError(f"{run} holds no results yet; let the fine-tuning come to its end first.")
    model = Path(results["model"])
    plan = files.read_json(model / "plans.json")
    trainer = _stock_trainer(plan["configurations"][nnunet.CONFIGURATION]["architecture"], _INFERENCE)
    target = out / str(results["dataset"]) / f"{trainer}__{plan['plans_name']}__{nnunet.CONFIGURATION}"
    numbers = [row["fold"] for row in results["results"] if row["fold"] is not None]
    partial = target.with_name(f".writing-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    description = files.read_json(model / "dataset.json")
    (partial / "dataset.json").write_text(json.dumps({key: description[key] for key in _TOLD if key in description}))
    (partial / "plans.json").write_text(json.dumps(_without_paths(plan), indent=1))
    for number in numbers:
        _rewrite(model / f"fold_{number}" / "checkpoint_final.pth", partial / f"fold_{number}", trainer)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    return [target]


def _without_paths(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan without where the pretraining's file was."""
    kept = {key: value for key, value in plan.items() if key not in {"pretrain_info", "continue_training"}}
    block = dict(kept.get(nnunet.BLOCK, {}))
    if block.get("encoder"):
        block["encoder"] = {key: block["encoder"][key] for key in _ENCODER if key in block["encoder"]}
    return {**kept, nnunet.BLOCK: block} if block else kept


def _rewrite(file: Path, folder: Path, trainer: str) -> None:
    """Write a checkpoint with nothing but what prediction reads, under a trainer that stock nnU-Net has."""
    root = files.load_checkpoint(file, nnunet_models.harmless())
    folder.mkdir()
    kept = {
        "network_weights": root["network_weights"],
        "trainer_name": trainer,
        "init_args": {"configuration": root["init_args"]["configuration"]},
        "inference_allowed_mirroring_axes": root.get("inference_allowed_mirroring_axes"),
    }
    torch.save(kept, folder / file.name)
