"""What a fine-tuning is asked to do, as data: checked, written beside its results, and unpacked here alone."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from viewalign.config import Count, Fraction, Positive, Settings, Triple
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.finetuning.segmentation.schedule import Schedule, published
from viewalign.utils.overrides import closest, format_validation_error
from viewalign.weights.names import Family

FILE = "finetune.yaml"
_LATER = {"predict"}
"""What may be added to a fine-tuning that is there."""
_PLAIN_NAMES = {"export", "checkpoint_final", "checkpoint_best", "encoder", "fold_all"}
_AS_OPTION = {"tta": "mirror_validation", "min_share": "minimum_share"}
"""Options of the command line that are called otherwise here."""
_KEPT_OPEN = ("lr", "weight_decay", "clip", "warmup", "optimizer")


class FinetuneSettings(Settings):
    """A fine-tuning for segmentation. What is None follows the published schedule or the pretraining."""

    dataset: str
    encoder: str
    from_scratch: bool = False
    plans: str | None = None
    base_plans: str | None = None
    spacing: Literal["pretraining", "dataset"] | tuple[Positive, Positive, Positive] = "pretraining"
    norm: Literal["pretraining", "dataset"] = "pretraining"
    network: Literal["pretraining", "dataset"] = "pretraining"
    patch: Triple | None = None
    batch: Count = 2
    epochs: Count = 150
    iterations: Count = 250
    validation_iterations: Count = 50
    optimizer: Literal["sgd", "adamw"] | None = None
    lr: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    clip: Positive | None = None
    warmup: Annotated[int, Field(ge=0)] | None = None
    sawtooth: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    mirror: bool = True
    mirror_validation: bool = True
    save_every: Count = 10
    seed: Annotated[int, Field(ge=0)] = 0
    folds: tuple[int, ...] | Literal["cv", "all"] = (0,)
    shots: tuple[Count, ...] = ()
    seeds: Count = 1
    training: str | None = None
    validation: str | None = None
    patient: str | None = None
    tolerance: str = "1"
    minimum_share: Fraction = 0.9
    token_order: Literal["auto", "dhw", "hdw"] = "auto"
    predict: str | None = None
    postprocess: bool = False


def check(values: dict[str, Any]) -> FinetuneSettings:
    """Turn plain values into settings.

    Raises:
        UserError: a value that does not fit.
    """
    try:
        return FinetuneSettings.model_validate(values)
    except ValidationError as problem:
        raise UserError(f"{format_validation_error(problem, _suggest)}.") from None


def _suggest(key: str) -> str:
    option = _AS_OPTION.get(key)
    return f" (did you mean '{option}'?)" if option else closest(key, FinetuneSettings.model_fields)


def keep(settings: FinetuneSettings, out: Path) -> FinetuneSettings:
    """Write the settings into a run's folder, or check them against those that are there.

    Raises:
        UserError: the folder holds another fine-tuning or something else.
    """
    file = out / FILE
    if file.is_file():
        before = yaml.safe_load(file.read_text())
        now = settings.model_dump(mode="json")
        changed = [key for key in now if before.get(key) != now[key] and key not in _LATER]
        if changed:
            key = changed[0]
            raise UserError(
                f"{out} holds a fine-tuning with {key}={before.get(key)}, not {now[key]}. Give the same settings to go "
                "on with it, or another folder to -o."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no fine-tuning; name a new folder with -o.")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    return settings


def schedule_of(settings: FinetuneSettings, family: Family) -> Schedule:
    """Return the published schedule with what the settings change.

    Raises:
        UserError: stages that leave nothing to train in.
    """
    same = {
        key: getattr(settings, key)
        for key in (
            "iterations",
            "validation_iterations",
            "precision",
            "mirror",
            "mirror_validation",
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
    """Return what the plan takes from where."""
    return nnunet.Choices(
        name, settings.spacing, settings.norm, settings.patch, settings.batch, settings.network == "dataset"
    )


def encoder_name(asked: str) -> str:
    """Return a short name of an encoder by what it was asked for, fit for a folder of nnU-Net's."""
    parts = [part for part in re.split(r"[/\\]", re.sub(r"^hf:", "", asked).rstrip("/\\")) if part]
    words = [re.sub(r"\.(pth|pt|safetensors)$", "", part) for part in parts]
    while len(words) > 1 and words[-1] in _PLAIN_NAMES:
        words.pop()
    return re.sub(r"[^A-Za-z0-9]+", "-", words[-1] if words else "encoder").strip("-") or "encoder"


def plan_name(settings: FinetuneSettings, schedule: Schedule) -> str:
    """Return the plan's name: asked for, or made of the encoder's and a digest of all that changes the training.

    nnU-Net keeps results in a folder of the plan's name, so that two plans of one name would mix their checkpoints.
    """
    if settings.plans:
        return settings.plans
    essence = settings.model_dump(
        mode="json",
        include={"dataset", "encoder", "spacing", "norm", "network", "patch", "batch", "minimum_share", "base_plans"},
    )
    text = json.dumps([essence, schedule.as_json(), settings.from_scratch], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"viewalign_{encoder_name(settings.encoder)}{'_scratch' if settings.from_scratch else ''}_{digest}"
