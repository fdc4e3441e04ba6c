"""From what a command was given to an encoder and its preprocessor."""

from __future__ import annotations

import importlib.util

from viewalign.errors import UserError
from viewalign.networks.backbone import Backbone, Size
from viewalign.transfer.tasks.encoders import (
    Pretrained,
    build_encoder,
    default_size,
    fill_own_pooling,
    read_pretrained,
)
from viewalign.transfer.tasks.preparation import Frames, Preprocessor
from viewalign.transfer.tasks.spec import TaskSpec
from viewalign.volumes.recipe import PrepareSettings

_POOLS = ("multistage", "average", "pretrained")


def check_installed() -> None:
    """Say which extra classification and regression need.

    Raises:
        UserError: it is not installed.
    """
    wanted = {"scikit-learn": "sklearn", "torchmetrics": "torchmetrics", "scipy": "scipy"}
    missing = [name for name, module in wanted.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"Classification and regression need {' and '.join(missing)}: pip install 'viewalign[tasks]'.")


def encoder_and_preprocessor(
    encoder: str, spec: TaskSpec, size: str | None, spacing: str, pool: str, like: Pretrained | None = None
) -> tuple[Backbone, Preprocessor]:
    """Read an encoder and make it and its preprocessor fit a task.

    Args:
        encoder: see `encoders.read_pretrained`.
        spec: the task.
        size: `D,H,W` or one number, in voxels; None for the views of pretraining.
        spacing: `pretraining`, `none`, or `D,H,W` in mm.
        pool: how vectors will be made.
        like: an encoder whose preparation and size to take instead (for an untrained network).

    Raises:
        UserError: what does not fit.
    """
    if pool not in _POOLS:
        raise UserError(f"--pool takes {', '.join(_POOLS)}, not '{pool}'.")
    start = read_pretrained(encoder)
    voxels = parse_size(size) or default_size(like or start)
    settings = with_spacing((like or start).preparation, spacing)
    backbone, _ = build_encoder(start, voxels, len(spec.channels))
    if pool == "pretrained":
        fill_own_pooling(backbone, start)
    return backbone, make_preprocessor(spec, voxels, settings)


def make_preprocessor(
    spec: TaskSpec, size: Size, settings: PrepareSettings, strip: bool = False, frames: Frames = "same"
) -> Preprocessor:
    """Make the preprocessor of a task."""
    return Preprocessor(spec.channels, size, settings, strip, frames)


def parse_size(text: str | None) -> Size | None:
    """Read `96` or `96,112,96`.

    Raises:
        UserError: it is no size.
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--size {text}: give one or three voxel counts, such as 96 or 96,112,96 (D,H,W).")
    d, h, w = [int(part) for part in parts] * (3 if len(parts) == 1 else 1)
    return d, h, w


def with_spacing(settings: PrepareSettings, text: str) -> PrepareSettings:
    """Return settings with the spacing that a user asked for.

    Raises:
        UserError: it is no spacing.
    """
    if text == "pretraining":
        return settings
    if text == "none":
        return settings.model_copy(update={"spacing": None})
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or min(numbers) <= 0:
        raise UserError(f"--spacing {text}: give pretraining, none, or one or three voxel sizes in mm (D,H,W).")
    d, h, w = numbers * (3 if len(numbers) == 1 else 1)
    return settings.model_copy(update={"spacing": (d, h, w)})
