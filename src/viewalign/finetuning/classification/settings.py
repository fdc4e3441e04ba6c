"""Settings of a fine-tuning: a recipe's YAML and `key=value` overrides, strictly checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from viewalign.config import Count, Fraction, Millimetres, PhotometricSettings, Positive, Range, Settings, Triple
from viewalign.errors import UserError
from viewalign.evaluation.embedding import Pool
from viewalign.recipes.loading import settings_in
from viewalign.utils.overrides import closest, diff_settings, format_validation_error, read_override, set_nested

Mode = Literal["full", "head_first", "frozen", "layerwise", "lora"]


class AugmentSettings(Settings):
    """What is drawn anew for a case each time it is seen.

    Mirroring is for tasks without laterality alone, and changes of scale for targets that are no size: with a volume to
    tell, set `p_scale` to 0.
    """

    mirror: bool = True
    p_rotation: Fraction = 0.2
    rotation_degrees: Annotated[float, Field(ge=0.0, le=180.0)] = 30.0
    p_scale: Fraction = 0.2
    scale: Range = (0.8, 1.25)
    photometric: PhotometricSettings = PhotometricSettings()
    channel_dropout: Fraction = 0.0


class LoraSettings(Settings):
    """Adapters of `mode: lora`: their rank, scale (`alpha / rank`) and dropout."""

    rank: Count = 8
    alpha: Positive = 16.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class TaskTraining(Settings):
    """A fine-tuning for classification or regression.

    Attributes:
        mode: `full`; `head_first` (the head alone for `head_epochs`, then all); `frozen`; `layerwise` (the rate shrinks
            by `layer_decay` from block to block towards the input); `lora` (low-rank adapters and the head alone).
        batch: cases an optimizer step; `accumulate` works it out in so many parts.
        warmup: share of the steps over which the learning rate rises; then it follows half a cosine to 0.
        smoothing: of labels.
        class_weights: weigh classes by their rarity; `balanced` draws classes equally often instead.
        folds: models, each judged on the training cases that it has not seen; 1 learns from all training cases and is
            judged on the test cases alone.
        draws: resamplings of subjects for intervals.
        size, spacing: field of view in voxels and voxel size in mm, three numbers or one; by default as in pretraining.
    """

    mode: Mode = "full"
    pool: Pool = "multistage"
    head_epochs: Count = 10
    lora: LoraSettings = LoraSettings()
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    epochs: Count = 100
    batch: Count = 8
    accumulate: Count = 1
    lr: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    warmup: Fraction = 0.1
    clip: Positive = 1.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    class_weights: bool = False
    balanced: bool = False
    augment: AugmentSettings = AugmentSettings()
    folds: Count = 5
    by_site: bool = False
    size: Triple | None = None
    spacing: Literal["pretraining", "none"] | Millimetres = "pretraining"
    normalise: Literal["pretraining", "zscore", "foreground", "none"] = "pretraining"
    strip: bool = False
    frames: Literal["same", "resample"] = "same"
    min_share: Fraction = 0.9
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    draws: Annotated[int, Field(ge=100)] = 1000


def settings_that_differ(before: TaskTraining, now: TaskTraining) -> str:
    """Say in words which settings are not as before, but for the device: a fine-tuning may go on on another one."""
    old, new = (one.model_dump(mode="json", exclude={"device"}) for one in (before, now))
    return "; ".join(f"{key}={was}, not {wanted}" for key, was, wanted in diff_settings(old, new))


def recipe_names() -> list[str]:
    """Return the names of the fine-tuning recipes that come with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("viewalign.recipes").joinpath("tasks")


def load_training(
    recipe: str | None, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> TaskTraining:
    """Read a recipe by name or path, apply `key=value` overrides, then plain settings, in groups.

    Raises:
        UserError: an unknown recipe or key (the nearest right one is named), or a value that does not fit.
    """
    tree: dict[str, Any] = {}
    if recipe is not None:
        tree = _read(recipe)
    for override in overrides:
        set_nested(tree, *read_override(override, "lr=0.001"))
    for name, plain in (settings or {}).items():
        both = isinstance(plain, Mapping) and isinstance(tree.get(name), dict)
        tree[name] = {**tree[name], **plain} if both else plain
    return check_training(tree, recipe or "the settings")


def check_training(tree: dict[str, Any], source: str) -> TaskTraining:
    """Turn plain values into settings; `source` is what a message calls them."""
    try:
        return TaskTraining.model_validate(tree)
    except ValidationError as problem:
        raise UserError(f"{source}: {format_validation_error(problem, _suggest)}.") from None


def _suggest(key: str) -> str:
    return closest(key, [*TaskTraining.model_fields, *AugmentSettings.model_fields, *LoraSettings.model_fields])


def _read(recipe: str) -> dict[str, Any]:
    if Path(recipe).suffix in (".yaml", ".yml") and Path(recipe).is_file():
        text = Path(recipe).read_text(encoding="utf-8")
    elif recipe in recipe_names():
        text = _folder().joinpath(f"{recipe}.yaml").read_text()
    else:
        raise UserError(f"There is no recipe '{recipe}'; there are {', '.join(recipe_names())}, or a YAML file's path.")
    return settings_in(text, recipe)
