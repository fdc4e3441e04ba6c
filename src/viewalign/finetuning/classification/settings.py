"""Settings of a fine-tuning: a recipe's YAML and `key=value` overrides, strictly checked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from viewalign.config import PhotometricSettings
from viewalign.errors import UserError
from viewalign.evaluation.settings import Pool, Spacing
from viewalign.utils.overrides import diff_settings
from viewalign.utils.settings import (
    Count,
    Fraction,
    Number,
    Positive,
    Range,
    Settings,
    Triple,
    checked,
    merged,
    nested,
    parse_yaml,
)

Mode = Literal["full", "head_first", "frozen", "layerwise", "lora"]


class AugmentSettings(Settings):
    """Augmentation of a case each time it is seen."""

    mirror: bool = Field(True, description="Mirror along each axis; false where left and right differ.")
    p_rotation: Fraction = Field(0.2, description="Probability of a rotation.")
    rotation_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        30.0, description="Largest angle of a rotation about each axis, in degrees."
    )
    p_scale: Fraction = Field(0.2, description="Probability of a change of scale; 0 where the target is a size.")
    scale: Range = Field((0.8, 1.25), description="Range of the scale factor.")
    photometric: PhotometricSettings = PhotometricSettings()
    channel_dropout: Fraction = Field(0.0, description="Probability of leaving out a channel, where there are several.")


class LoraSettings(Settings):
    """Adapters of `mode=lora`."""

    rank: Count = Field(8, description="Rank of the adapters.")
    alpha: Positive = Field(16.0, description="Their scale is alpha / rank.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Dropout of their input.")


class TaskTraining(Settings):
    """Training and evaluation."""

    mode: Mode = Field(
        "full",
        description="full; head_first: the head alone for `head_epochs`, then all; frozen: the head alone; layerwise: "
        "the rate shrinks by `layer_decay` from block to block towards the input; lora: low-rank adapters and the "
        "head.",
    )
    pool: Pool = Field("multistage", description="How feature maps become a vector, as for embed; attention is learnt.")
    head_epochs: Count = Field(10, description="Epochs of the head alone with `mode=head_first`.")
    lora: LoraSettings = LoraSettings()
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.75, description="Factor of the rate from block to block with `mode=layerwise`."
    )
    epochs: Count = Field(100, description="Epochs of each fold.")
    batch: Count = Field(8, description="Cases of an optimizer step.")
    accumulate: Count = Field(1, description="Compute a step's cases in so many parts: less memory.")
    lr: Positive = Field(1e-4, description="Learning rate of adamw after the warm-up; then half a cosine to 0.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(1e-2, description="Weight decay.")
    warmup_epochs: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="Epochs over which the learning rate rises linearly; null: a tenth of `epochs`."
    )
    clip: Positive = Field(1.0, description="Largest norm of a step's gradient.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.2, description="Dropout in front of the head.")
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Label smoothing.")
    class_weights: bool = Field(False, description="Weight classes in the loss by their inverse frequency.")
    balanced: bool = Field(False, description="Draw classes with equal probability.")
    augment: AugmentSettings = AugmentSettings()
    folds: Count = Field(
        5,
        description="Models, each evaluated on the training cases that it has not seen; 1 trains on all training cases "
        "and is evaluated on the test cases only.",
    )
    by_site: bool = Field(False, description="Hold out whole sites: folds by the manifest's column `site`.")
    patch_size: Triple | None = Field(
        None, description="Field of view (D, H, W) in voxels; null for the views of pretraining."
    )
    spacing: Spacing = Field(
        "pretraining", description="Voxel size in mm along (D, H, W); `pretraining`, or `none` for each image's own."
    )
    normalise: Literal["pretraining", "zscore", "foreground", "none"] = Field(
        "pretraining", description="Normalisation of images, as for prepare."
    )
    strip: bool = Field(False, description="Set voxels outside the manifest's mask to 0.")
    frames: Literal["same", "resample"] = Field(
        "same", description="Channels of a case on different grids: an error, or resampled to the first one's."
    )
    min_share: Fraction = Field(0.9, description="Smallest share of the encoder that the weights must cover.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the network.")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: CUDA where there is a GPU, else the CPU.")
    seed: Number = Field(0, description="Seed of folds, head, order and augmentation.")
    draws: Annotated[int, Field(ge=100)] = Field(1000, description="Bootstrap samples of subjects for 95 % intervals.")


class TaskOptions(TaskTraining):
    """Recipe and preparation of cases."""

    recipe: str | None = Field(
        None, description="Settings to start from: ssl3d-abide, fomo-infarct, fomo-brain-age, or a YAML file."
    )
    cache: str | None = Field(None, description="Folder that keeps prepared cases for the next encoder.")
    workers: Number | None = Field(
        None, description="Processes that prepare cases. null: one per core, up to 16, and 0 for 16 cases or fewer."
    )


def settings_that_differ(before: TaskTraining, now: TaskTraining) -> str:
    """Say in words which settings are not as before, but for the device: a fine-tuning may go on on another one."""
    old, new = (one.model_dump(mode="json", exclude={"device"}) for one in (before, now))
    return "; ".join(f"{key}={was}, not {wanted}" for key, was, wanted in diff_settings(old, new))


def recipe_names() -> list[str]:
    """Return the names of the fine-tuning recipes that come with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("viewalign.recipes").joinpath("tasks")


def load_training(recipe: str | None, settings: Mapping[str, Any] | None = None) -> TaskTraining:
    """Read a recipe by name or path and lay settings over it, in groups or dotted.

    Raises:
        UserError: an unknown recipe or key (the nearest right one is named), or a value that does not fit.
    """
    tree = {} if recipe is None else _read(recipe)
    return checked(TaskTraining, merged(tree, nested(settings or {})), recipe or "")


def _read(recipe: str) -> dict[str, Any]:
    if Path(recipe).suffix in (".yaml", ".yml") and Path(recipe).is_file():
        text = Path(recipe).read_text(encoding="utf-8")
    elif recipe in recipe_names():
        text = _folder().joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(f"There is no recipe '{recipe}'; there are {', '.join(recipe_names())}, or a YAML file's path.")
    return parse_yaml(text, recipe)
