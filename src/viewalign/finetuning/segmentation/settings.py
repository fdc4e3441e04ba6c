"""Settings of a fine-tuning for segmentation: written beside its results, and unpacked only here."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.finetuning.segmentation.schedule import Schedule, published
from viewalign.utils.io import write_text
from viewalign.utils.outputs import check_folder
from viewalign.utils.settings import (
    Count,
    Counts,
    Fraction,
    Millimetres,
    Number,
    PathOrName,
    Positive,
    Settings,
    Triple,
    as_list,
)
from viewalign.utils.yaml_values import load_yaml
from viewalign.weights.names import Family

FILE = "finetune.yaml"
_LATER = {"predict"}
"""Settings that may change for an existing fine-tuning."""
_PLAIN_NAMES = {"export", "checkpoint_final", "checkpoint_best", "encoder", "fold_all"}
_KEPT_OPEN = ("lr", "weight_decay", "clip", "warmup_epochs", "optimizer")


class SplitSettings(Settings):
    """Splits and scores."""

    folds: Annotated[int, Field(ge=1, le=5)] = Field(
        1, description="Number of nnU-Net's five folds to train: 1 trains the first, 5 is a cross-validation."
    )
    fold: Annotated[tuple[Number, ...], BeforeValidator(as_list)] | Literal["all"] | None = Field(
        None, description="Train only these folds (from 0), for array jobs; `all`: every case, without validation."
    )
    shots: Counts = Field((), description="Few-shot: train on these numbers of cases, such as 5,10,20.")
    seeds: Count = Field(1, description="Number of samples for each number of shots.")
    training: PathOrName | None = Field(
        None, description="Training cases, in the form of `validation`; null: all other cases of other patients."
    )
    validation: PathOrName | None = Field(
        None, description="Validation cases: patterns such as 'heart_2*,heart_30', or a file of names."
    )
    patient: str | None = Field(
        None, description="Regular expression whose first group is the patient in a case's name, such as '(sub-\\d+)'."
    )
    tolerance: str = Field(
        "1",
        description="Tolerance of the surface distance in mm: for all classes, or by class such as tumour=2,oedema=1.",
    )
    predict: PathOrName | None = Field(
        None, description="Folder of additional images, or imagesTs; predicted by the mean of all trained folds."
    )
    postprocess: bool = Field(False, description="With folds=5: nnU-Net's postprocessing, if it increases Dice.")
    tta: bool = Field(
        True, description="Average validation and prediction over mirrored images, which takes eight times as long."
    )


class PlanSettings(Settings):
    """Plan."""

    spacing: Literal["pretraining", "dataset"] | Millimetres = Field(
        "pretraining",
        description="Voxel size in mm along (D, H, W): that of pretraining, or nnU-Net's choice for the dataset.",
    )
    normalise: Literal["pretraining", "dataset"] = Field("pretraining", description="Normalisation of images.")
    network: Literal["pretraining", "dataset"] = Field(
        "pretraining", description="dataset: nnU-Net's own network, to which the weights are adapted."
    )
    patch_size: Triple | None = Field(
        None, description="Patch (D, H, W) in voxels; null: that of pretraining, limited to the size of the images."
    )
    batch: Count = Field(2, description="Patches per step.")
    plans: str | None = Field(
        None, description="Name of the plan; null: generated from the encoder and a hash of the settings."
    )
    base_plans: str | None = Field(
        None, description="Existing plan of nnU-Net to start from; null: created by nnU-Net."
    )
    min_share: Fraction = Field(0.9, description="Smallest fraction of the encoder that the weights must cover.")
    token_order: Literal["auto", "dhw", "hdw"] = Field(
        "auto",
        description="Token order of a Primus if its trainer is unknown: hdw (nnssl's EvaMAE) or dhw (raster order).",
    )


class TrainingSettings(Settings):
    """Training; null: the published schedule of the network."""

    from_scratch: bool = Field(False, description="Train the same plan without the pretrained weights, as a baseline.")
    epochs: Count = Field(150, description="Epochs per fold; published schedules have 1000 and 150.")
    iterations: Count = Field(250, description="Steps per epoch.")
    validation_iterations: Count = Field(50, description="Validation steps per epoch.")
    optimizer: Literal["sgd", "adamw"] | None = Field(None, description="null: sgd (ResEnc) or adamw (Primus).")
    lr: Positive | None = Field(
        None, description="Peak learning rate; null: 1e-3 (ResEnc) or 1e-4 (Primus), from scratch 1e-2 or 3e-4."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="Weight decay; null: 3e-5 (ResEnc) or 5e-2 (Primus)."
    )
    clip: Positive | None = Field(None, description="Largest gradient norm; null: 12 (ResEnc) or 1 (Primus).")
    warmup_epochs: Number | None = Field(
        None, description="Epochs of linear warm-up of the learning rate; null: a tenth of `epochs`, at most 50."
    )
    sawtooth: bool = Field(False, description="First train only the decoder, for as many epochs as the warm-up.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="Precision; auto: as nnU-Net.")
    mirror: bool = Field(True, description="Mirror in training; set false if left and right differ.")
    save_every: Count = Field(10, description="Epochs between checkpoints to resume from.")
    seed: Number = Field(0, description="Random seed of the decoder's initial weights.")


class FinetuneSettings(SplitSettings, PlanSettings, TrainingSettings):
    """What is fine-tuned."""

    dataset: PathOrName = Field(description="nnU-Net's number, name or folder of the dataset.")
    encoder: PathOrName = Field(
        description="A run, an export, a checkpoint of nnssl or nnU-Net, hf:OWNER/NAME, or a name of `viewalign "
        "encoders`."
    )


class MachineSettings(Settings):
    """Machine."""

    device: Literal["auto", "cuda", "cpu", "mps"] = Field(
        "auto", description="auto: CUDA if there is a GPU, else the CPU."
    )
    gpus: Count = Field(1, description="Number of GPUs of this machine to train on.")
    workers: Count | None = Field(
        None, description="Number of processes for preprocessing, patches and export. null: one per core, at most 8."
    )


class SegmentationOptions(MachineSettings, FinetuneSettings):
    """All settings of `viewalign finetune segmentation`."""


def keep(settings: FinetuneSettings, out: Path) -> FinetuneSettings:
    """Write the settings into a run's folder, or compare them with existing ones.

    Raises:
        UserError: the folder contains another fine-tuning or other files.
    """
    file = out / FILE
    if file.is_file():
        before = load_yaml(file.read_text())
        now = settings.model_dump(mode="json")
        changed = [key for key in now if before.get(key) != now[key] and key not in _LATER]
        if changed:
            key = changed[0]
            raise UserError(
                f"{out} contains a fine-tuning with {key}={before.get(key)}, not {now[key]}. Use the same settings to "
                "resume it, or another folder with -o."
            )
    else:
        check_folder(out, "fine-tuning", False)
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    return settings


def check_splits(settings: SplitSettings) -> None:
    """Check that no setting of the splits would have no effect.

    Raises:
        UserError: `seeds` without `shots`, `training`, `fold` or `folds` beside `shots`, or `fold` or `folds` beside
            named cases.
    """
    if not settings.shots and settings.seeds != 1:
        raise UserError(f"seeds={settings.seeds} is the number of few-shot samples; add shots, or omit seeds.")
    if settings.shots and settings.fold is not None:
        raise UserError("fold chooses a fold and shots draws samples; use only one of them.")
    if settings.shots and settings.folds != 1:
        raise UserError(f"folds={settings.folds} trains folds and shots draws samples; use only one of them.")
    if settings.shots and settings.training:
        raise UserError("training names the training cases and shots draws them; use only one of them.")
    named = [key for key in ("training", "validation") if getattr(settings, key)]
    for key in named if settings.fold is not None or settings.folds != 1 else ():
        raise UserError(f"{key} names cases, and fold and folds choose nnU-Net's folds; use only one of them.")


def schedule_of(settings: FinetuneSettings, family: Family) -> Schedule:
    """Return the published schedule with the settings' overrides.

    Raises:
        UserError: stages that leave no epochs for training.
    """
    same = {
        key: getattr(settings, key)
        for key in (
            "iterations",
            "validation_iterations",
            "precision",
            "mirror",
            "tta",
            "save_every",
            "seed",
        )
    }
    own = {key: value for key in _KEPT_OPEN if (value := getattr(settings, key)) is not None}
    try:
        usual = published(family, settings.epochs, settings.from_scratch, settings.sawtooth)
        return replace(usual, **same, **own)
    except ValueError as problem:
        raise UserError(f"{problem}.") from None


def choices_of(settings: FinetuneSettings, name: str) -> nnunet.Choices:
    """Return the sources of the plan's settings."""
    return nnunet.Choices(
        name, settings.spacing, settings.normalise, settings.patch_size, settings.batch, settings.network == "dataset"
    )


def encoder_name(path: str) -> str:
    """Return a short name of an encoder from its path, valid as a folder name of nnU-Net."""
    parts = [part for part in re.split(r"[/\\]", re.sub(r"^hf:", "", path).rstrip("/\\")) if part]
    words = [re.sub(r"\.(pth|pt|safetensors)$", "", part) for part in parts]
    while len(words) > 1 and words[-1] in _PLAIN_NAMES:
        words.pop()
    return re.sub(r"[^A-Za-z0-9]+", "-", words[-1] if words else "encoder").strip("-") or "encoder"


def plan_name(settings: FinetuneSettings, schedule: Schedule) -> str:
    """Return the plan's name: the requested one, or the encoder's name and a hash of what changes the training.

    nnU-Net keeps results in a folder of the plan's name, so that two plans with the same name would mix their
    checkpoints.
    """
    if settings.plans:
        return settings.plans
    essence = settings.model_dump(
        mode="json",
        include={
            "dataset",
            "encoder",
            "spacing",
            "normalise",
            "network",
            "patch_size",
            "batch",
            "min_share",
            "base_plans",
        },
    )
    text = json.dumps([essence, schedule.as_json(), settings.from_scratch], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"viewalign_{encoder_name(settings.encoder)}{'_scratch' if settings.from_scratch else ''}_{digest}"
