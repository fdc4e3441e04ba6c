"""Settings of a fine-tuning: a recipe's YAML and `key=value` overrides, strictly checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from viewalign.evaluation.settings import Pool, Spacing
from viewalign.recipes.files import TASK_RECIPES
from viewalign.utils.overrides import diff_settings
from viewalign.utils.settings import (
    Count,
    FilePath,
    Fraction,
    Number,
    PathOrName,
    Positive,
    PositiveRange,
    Settings,
    Triple,
    checked,
    merged,
    nested,
)
from viewalign.views.intensity_config import IntensityConfig

Mode = Literal["full", "head_first", "frozen", "layerwise", "lora", "dora", "norms"]


class AugmentSettings(Settings):
    """Augmentation of a case each time it is used."""

    mirror: bool = Field(
        True,
        description="Mirror along each axis, if the task has `laterality: false`; by default left and right differ.",
    )
    p_rotation: Fraction = Field(0.2, description="Probability of a rotation.")
    rotation_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        30.0, description="Largest angle of a rotation about each axis, in degrees."
    )
    p_scale: Fraction = Field(0.2, description="Probability of scaling; set 0 if the target is a size.")
    scale: PositiveRange = Field((0.8, 1.25), description="Range of the scale factor.")
    photometric: IntensityConfig = IntensityConfig()
    channel_dropout: Fraction = Field(0.0, description="Probability of dropping a channel, if there are several.")


class LoraSettings(Settings):
    """Adapters of `mode=lora` and `mode=dora`."""

    rank: Count = Field(8, description="Rank of the adapters.")
    alpha: Positive = Field(16.0, description="Their scale is alpha / rank.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Dropout of their input.")


class TaskTraining(Settings):
    """Training and evaluation."""

    mode: Mode = Field(
        "full",
        description="full; head_first: only the head for `head_epochs`, then all; frozen: only the head; layerwise: "
        "the rate decreases by `layer_decay` from block to block towards the input; lora: low-rank adapters and the "
        "head; dora: also the magnitudes of the adapted weights; norms: norms, biases and the head.",
    )
    pool: Pool = Field(
        "multistage", description="Pooling of feature maps to a vector, as for embed; attention is learnt."
    )
    head_epochs: Count = Field(10, description="Epochs of training only the head with `mode=head_first`.")
    lora: LoraSettings = LoraSettings()
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.75, description="Factor of the rate from block to block with `mode=layerwise`."
    )
    epochs: Count = Field(100, description="Epochs of each fold.")
    batch: Count = Field(8, description="Cases per optimizer step.")
    accumulate: Count = Field(1, description="Compute a step's cases in this many parts: less memory.")
    lr: Positive = Field(
        1e-4, description="Learning rate of AdamW after the warm-up; decreases to 0 along half a cosine."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(1e-2, description="Weight decay.")
    warmup_epochs: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="Epochs of linear warm-up of the learning rate; null: a tenth of `epochs`."
    )
    clip: Positive = Field(1.0, description="Largest norm of the gradient of a step.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.2, description="Dropout before the head.")
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Label smoothing.")
    class_weights: bool = Field(False, description="Weight classes in the loss by their inverse frequency.")
    balanced: bool = Field(False, description="Sample classes with equal probability.")
    augment: AugmentSettings = AugmentSettings()
    folds: Count = Field(
        5,
        description="Number of models of the cross-validation; 1 trains on all training cases "
        "and evaluates on the test cases only.",
    )
    by_site: bool = Field(
        False,
        description="Hold out whole sites (the manifest's column `site`); sites that share a subject count as one.",
    )
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
        "same", description="Channels of a case on different grids: an error, or resampled to the first channel's grid."
    )
    min_share: Fraction = Field(0.9, description="Smallest fraction of the encoder that the weights must cover.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("fp32", description="Precision of the network.")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: CUDA if there is a GPU, else the CPU.")
    seed: Number = Field(0, description="Random seed of folds, head, order and augmentation.")
    draws: Annotated[int, Field(ge=100)] = Field(1000, description="Bootstrap samples of subjects for 95 % intervals.")


class TaskOptions(TaskTraining):
    """Recipe and preparation of cases."""

    recipe: PathOrName | None = Field(
        None,
        description="Settings to start from: ssl3d-abide, fomo-infarct, fomo-brain-age, fomo-polymicrogyria, or a YAML "
        "file.",
    )
    cache: FilePath | None = Field(None, description="Folder that stores prepared cases for reuse.")
    workers: Number | None = Field(
        None,
        description="Number of processes that prepare cases. null: one per core, up to 16; 0 for at most 16 cases.",
    )


def settings_that_differ(before: TaskTraining, now: TaskTraining) -> str:
    """Return in words which settings differ from before, except the device, which may change."""
    old, new = (one.model_dump(mode="json", exclude={"device"}) for one in (before, now))
    return "; ".join(f"{key}={was}, not {wanted}" for key, was, wanted in diff_settings(old, new))


def load_training(recipe: str | None, settings: Mapping[str, Any] | None = None) -> TaskTraining:
    """Read a recipe by name or path and merge settings into it, in groups or with dotted keys.

    Raises:
        UserError: an unknown recipe or key (with the closest match), or an invalid value.
    """
    tree: dict[str, Any] = {}
    for each, _ in [] if recipe is None else TASK_RECIPES.read(recipe, TaskTraining):
        tree = merged(tree, each)
    return checked(TaskTraining, merged(tree, nested(settings or {})), recipe or "")
