"""Export for nnU-Net without viewalign: initial weights for training, and trained models for prediction."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation import environment, nnunet, planning, plans
from viewalign.finetuning.segmentation.dataset import Dataset
from viewalign.finetuning.segmentation.environment import Folders
from viewalign.finetuning.segmentation.predict import KEY
from viewalign.finetuning.segmentation.schedule import published
from viewalign.finetuning.segmentation.settings import encoder_name
from viewalign.utils.io import atomic_write, replaced_folder, write_json
from viewalign.utils.outputs import check_folder
from viewalign.weights import files, loading
from viewalign.weights.initial import write_report
from viewalign.weights.reading import read_source

_FROM_SCRATCH = {"unet": "nnUNetTrainer_warmup", "primus": "nnUNet_Primus_{}_Trainer"}
_INFERENCE = {"unet": "nnUNetTrainer", "primus": "nnUNet_Primus_{}_Trainer"}
_SEED = 0
_DATASET_KEYS = (
    *("channel_names", "modality", "labels", "regions_class_order", "file_ending"),
    *("overwrite_image_reader_writer", KEY),
)
"""Entries of `dataset.json` that prediction reads. Others may contain names of cases."""
_OWN_FILES = {"dataset.json", "plans.json", "checkpoint_final.pth"}
"""All files of an exported model; a folder with others is not replaced."""
_ENCODER_KEYS = ("file", "digest", "min_share")


@dataclass(frozen=True)
class Start:
    """Files for nnU-Net's own training.

    Attributes:
        plan: in `nnUNet_preprocessed`.
        checkpoint: complete network for `-pretrained_weights`.
        commands: of nnU-Net to run next.
    """

    plan: Path
    checkpoint: Path
    commands: list[str]


def export_start(encoder: str, dataset: str, out: Path, plan_name: str | None = None, patch: Any = None) -> Start:
    """Write a plan and a complete, dataset-specific checkpoint for unmodified nnU-Net.

    The checkpoint contains the planned network with the pretrained encoder and a randomly initialised decoder. The plan
    also has `pretrain_info`, by which nnU-Net's native commands read the same encoder, and works with our trainer.

    Args:
        encoder: see `weights.reading.read_source`.
        dataset: its number, name or folder.
        out: folder for the checkpoint and the report of loaded weights.
        plan_name: name of the plan.
        patch: (D, H, W) in voxels.

    Raises:
        UserError: nnU-Net's folders are not set, or stock nnU-Net has no trainer for the network.
    """
    folders = _environment_folders()
    environment.enter(folders, 1, "cpu")
    others = folders.preprocessed, folders.results
    data = datasets.find(dataset, folders.raw, *others)
    datasets.link(data, folders.raw, *others)
    source = read_source(encoder)
    name = plan_name or f"viewalign_{encoder_name(encoder)}"
    choices = plans.Choices(name, patch=patch)
    trainer = _stock_trainer(plans.architecture_of(source.plan, source.file), _FROM_SCRATCH)
    out.mkdir(parents=True, exist_ok=True)
    with nnunet.quietly(out / "nnunet.log"):
        base = planning.base_plan(data, folders, 1)
        planned = planning.write_plan(data, folders, base, source, choices, published(source.family), 0.9, False)
    d, h, w = planned.configuration["patch_size"]
    torch.manual_seed(_SEED)
    network = plans.build_network(planned.configuration["architecture"], data.channels, output_count(data), (d, h, w))
    write_report(loading.load_encoder_weights(network, source, (d, h, w)), out / "transfer.json")
    file = out / f"{name}_{data.name}.pth"
    with atomic_write(file) as partial:
        torch.save({"network_weights": {k: v.detach().cpu() for k, v in network.state_dict().items()}}, partial)
    return Start(planned.folder / f"{name}.json", file, _commands(data, name, trainer, file))


def _environment_folders() -> Folders:
    unset = [key for key in ("raw", "preprocessed", "results") if not os.environ.get(f"nnUNet_{key}")]
    if unset:
        raise UserError(
            f"nnUNet_{unset[0]} is not set. Stock nnU-Net needs nnUNet_raw, nnUNet_preprocessed and nnUNet_results."
        )
    folders = Folders.of(Path.cwd())
    folders.make()
    return folders


def output_count(data: Dataset) -> int:
    """Return the number of outputs of nnU-Net's network: regions, or classes with background."""
    if any(isinstance(value, list | tuple) for value in data.description["labels"].values()):
        return len(data.labels)
    return len(data.labels) + 1


def _stock_trainer(architecture: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the trainer of stock nnU-Net that builds a network.

    Raises:
        UserError: there is none.
    """
    if not plans.is_primus(architecture):
        return names["unet"]
    letter = plans.primus_preset(architecture)
    if letter is None:
        raise UserError(
            "Stock nnU-Net only has trainers for Primus S, B, M and L with tokens of 8³ voxels. Use "
            '`viewalign finetune segmentation`, or nnU-Net\'s commands after eval "$(viewalign nnunet env)".'
        )
    return names["primus"].format(letter)


def _commands(data: Dataset, name: str, trainer: str, file: Path) -> list[str]:
    configuration = plans.CONFIGURATION
    return [
        f"nnUNetv2_preprocess -d {data.id} -plans_name {name} -c {configuration} -np 4",
        f"nnUNetv2_train {data.id} {configuration} 0 -p {name} -tr {trainer} -pretrained_weights {file}",
        f"nnUNetv2_predict -d {data.id} -i IMAGES -o OUT -c {configuration} -p {name} -tr {trainer} -f 0",
    ]


def export_model(run: Path, out: Path) -> list[Path]:
    """Write a fine-tuned model for prediction by nnU-Net without viewalign.

    Args:
        run: folder of a fine-tuning.
        out: output folder, with the layout of nnU-Net's results.

    Returns:
        The model's folder in a list, for `nnUNetv2_predict_from_modelfolder`.

    Raises:
        UserError: training is not complete, or stock nnU-Net cannot build the network.
    """
    results = files.read_json(run / "results.json")
    if not results:
        raise UserError(f"{run} has no results yet; complete the fine-tuning first.")
    model = run / results["model"]
    plan = files.read_json(model / "plans.json")
    if not plan:
        raise UserError(f"{run} has no trained segmentation any more: there is no plans.json in {model}.")
    trainer = _stock_trainer(plan["configurations"][plans.CONFIGURATION]["architecture"], _INFERENCE)
    target = out / str(results["dataset"]) / f"{trainer}__{plan['plans_name']}__{plans.CONFIGURATION}"
    written = all(file.name in _OWN_FILES for file in target.rglob("*") if file.is_file())
    check_folder(target, "export", written)  # an nnU-Net training may have the same name
    numbers = dict.fromkeys(row["fold"] for row in results["results"] if row["fold"] is not None)
    description = files.read_json(model / "dataset.json")
    with replaced_folder(target) as partial:
        write_json(partial / "dataset.json", {key: description[key] for key in _DATASET_KEYS if key in description})
        write_json(partial / "plans.json", _without_paths(plan))
        for number in numbers:
            _write_checkpoint(model / f"fold_{number}" / "checkpoint_final.pth", partial / f"fold_{number}", trainer)
    return [target]


def _without_paths(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan without paths of the pretrained encoder."""
    kept = {key: value for key, value in plan.items() if key not in {"pretrain_info", "continue_training"}}
    block = dict(kept.get(plans.BLOCK, {}))
    if block.get("encoder"):
        block["encoder"] = {key: block["encoder"][key] for key in _ENCODER_KEYS if key in block["encoder"]}
    return {**kept, plans.BLOCK: block} if block else kept


def _write_checkpoint(file: Path, folder: Path, trainer: str) -> None:
    """Write a checkpoint for a trainer of stock nnU-Net with only the entries that prediction reads."""
    root = files.load_checkpoint(file, files.harmless())
    folder.mkdir()
    kept = {
        "network_weights": root["network_weights"],
        "trainer_name": trainer,
        "init_args": {"configuration": root["init_args"]["configuration"]},
        "inference_allowed_mirroring_axes": root.get("inference_allowed_mirroring_axes"),
    }
    torch.save(kept, folder / file.name)
