"""Build an encoder for a task's channels and field of view from pretrained weights, and its preprocessor."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.evaluation.settings import ChannelMode
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone, network_names
from viewalign.tasks.preprocessing import Preprocessor
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.extras import missing
from viewalign.utils.shapes import Size
from viewalign.weights import loading, reading, sources
from viewalign.weights.adaptation_plan import PREPARATION
from viewalign.weights.loading import FittedWeights
from viewalign.weights.token_order import Order

Spacing = Literal["pretraining", "none"] | tuple[float, float, float]
UNTRAINED = "untrained:"
"""`untrained:NAME` is the network NAME with random weights, as a baseline."""
_log = logging.getLogger(__name__)
_OWN_POOLING = ("feature_decoder.", "attention_pool.")


@dataclass(frozen=True)
class Pretrained:
    """Pretrained weights and how they were pretrained.

    Attributes:
        network: a name of `networks.registry`.
        source: weights, or None for an untrained network.
        preparation: preprocessing of the pretraining images.
        size: (D, H, W) of the pretraining views, or None if unknown.
        pooling: weights of a Primus's pooling; empty if the file has none.
    """

    network: str
    source: sources.Source | None
    preparation: PrepareSettings
    size: Size | None
    pooling: Mapping[str, torch.Tensor]


def read_pretrained(encoder: str | Path, token_order: Order | None = None) -> Pretrained:
    """Read pretrained weights, or name an untrained network (`untrained:resenc-l`).

    Raises:
        UserError: no weights, or weights of an unknown network.
    """
    text = str(encoder)
    if text.startswith(UNTRAINED):
        name = text.removeprefix(UNTRAINED)
        if name not in network_names():
            raise UserError(f"There is no network '{name}'; there are {', '.join(network_names())}.")
        return Pretrained(name, None, PrepareSettings(), None, {})
    source = reading.read_source(encoder, token_order)
    return Pretrained(
        reading.network_of(source), source, preparation_of(source.plan), source.size, _pooling(encoder, source)
    )


def preparation_of(plan: Mapping[str, Any]) -> PrepareSettings:
    """Return the preparation of a pretraining from its adaptation plan, or the defaults.

    Raises:
        UserError: the plan's settings are damaged.
    """
    if isinstance(own := plan.get(PREPARATION), Mapping):
        try:
            settings = PrepareSettings.model_validate(dict(own))
        except ValueError:
            raise UserError(f"The adaptation plan has a damaged entry {PREPARATION}: {dict(own)}.") from None
        if settings.suv:
            _log.warning("The encoder was pretrained on PET in SUV. Images are not converted, so they must be in SUV.")
        return settings
    configurations = (plan.get("pretrain_plan") or {}).get("configurations") or {}
    first = next(iter(configurations.values()), None)
    if not isinstance(first, Mapping):
        return PrepareSettings()
    spacing = first.get("spacing")
    foreground = bool((first.get("use_mask_for_norm") or [False])[0])
    plain = (first.get("normalization_schemes") or [""])[0] == "NoNormalization"
    return PrepareSettings(
        spacing=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        normalise="none" if plain else "foreground" if foreground else "zscore",
    )


def _pooling(encoder: str | Path, source: sources.Source) -> dict[str, torch.Tensor]:
    """Return the pooling weights of a Primus, which only run folders contain."""
    from viewalign.weights import checkpoints
    from viewalign.weights.run_folder import RunFolder

    run = RunFolder(Path(encoder))
    if source.family != "primus" or not run.config.is_file():
        return {}
    state = checkpoints.load_newest(run.checkpoints)
    own = {k.removeprefix("student.backbone."): v for k, v in (state or {"method": {}})["method"].items()}
    return {k: v for k, v in own.items() if k.startswith(_OWN_POOLING)}


def build_encoder(
    start: Pretrained, size: Size, channels: int, min_share: float = 0.9, seed: int = 0
) -> tuple[Backbone, FittedWeights | None]:
    """Build a backbone without decoder and load pretrained weights.

    Args:
        start: from `read_pretrained`.
        size: (D, H, W) of the images; a Primus's position embedding is resized to it.
        channels: number of image channels; the first convolution is repeated over them and rescaled.
        min_share: fraction of the encoder's elements that must be loaded.
        seed: of random weights.

    Raises:
        UserError: a size that the network does not support, or too few weights that match.
    """
    torch.manual_seed(seed)
    backbone = build_backbone(start.network, size, channels, key="size")
    backbone.drop_decoder()
    if start.source is None:
        return backbone, None
    fitted = loading.load_encoder_weights(backbone, start.source, size, min_share, "min_share")
    return backbone, fitted


@torch.no_grad()
def load_pretrained_pooling(backbone: Backbone, start: Pretrained) -> None:
    """Load a Primus's pooling from its pretraining; that of a ResEnc has no weights.

    Raises:
        UserError: the weights are missing, or of another field of view.
    """
    own = {k: v for k, v in backbone.named_parameters() if k.startswith(_OWN_POOLING)}
    if start.source is None:
        return
    if any(name not in start.pooling for name in own):
        raise UserError("pool=pretrained needs the run folder of a Primus's pretraining; use it, or pool=average.")
    if any(start.pooling[name].shape != value.shape for name, value in own.items()):
        raise UserError(f"pool=pretrained needs the view size of the pretraining, {start.size}; or use pool=average.")
    for name, value in own.items():
        value.copy_(start.pooling[name])


def default_size(start: Pretrained) -> Size:
    """Return the field of view of the pretraining, or 64³ if it is unknown."""
    return start.size or (64, 64, 64)


def check_installed() -> None:
    """Check that the packages for classification and regression are installed.

    Raises:
        UserError: which are missing.
    """
    wanted = {"scikit-learn": "sklearn", "scipy": "scipy"}
    absent = [name for name, module in wanted.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise missing(f"Classification and regression need {' and '.join(absent)}", "tasks")


def encoder_and_preprocessor(
    encoder: str | Pretrained,
    spec: TaskSpec,
    patch_size: Size | None,
    spacing: Spacing,
    pool: str,
    like: Pretrained | None = None,
    channels: ChannelMode = "stacked",
) -> tuple[Backbone, Preprocessor]:
    """Build an encoder and its preprocessor for a task.

    Args:
        encoder: from `read_pretrained`, or its argument.
        spec: the task.
        patch_size: (D, H, W) in voxels; None for the pretraining views.
        spacing: see `with_spacing`.
        pool: kind of pooling.
        like: use preprocessing and default size of this pretraining (for an untrained network).
        channels: `separate` builds an encoder of one channel, by which `embed` encodes each channel.

    Raises:
        UserError: an encoder that cannot be built.
    """
    start = encoder if isinstance(encoder, Pretrained) else read_pretrained(encoder)
    size = patch_size or default_size(like or start)
    settings = with_spacing((like or start).preparation, spacing)
    if like is None:
        compare_channels(settings, spec)
    backbone, _ = build_encoder(start, size, 1 if channels == "separate" else len(spec.channels))
    if pool == "pretrained":
        load_pretrained_pooling(backbone, start)
    return backbone, Preprocessor(spec.channels, size, settings)


def compare_channels(preparation: PrepareSettings, spec: TaskSpec) -> None:
    """Warn if a task has other channels than the images of a pretraining on several."""
    pretrained, task = preparation.channels, [channel.name for channel in spec.channels]
    if not pretrained or [name.casefold() for name in pretrained] == [name.casefold() for name in task]:
        return
    if len(pretrained) == len(task):
        effect = "they should be the same sequences in the same order"
    else:
        effect = "the weights of its first layer are repeated or summed, which mixes sequences"
    _log.warning(
        "The encoder was pretrained on the channels %s, and the task has %s: %s.",
        ", ".join(pretrained), ", ".join(task), effect,
    )  # fmt: skip


def with_spacing(settings: PrepareSettings, spacing: Spacing) -> PrepareSettings:
    """Return settings with another spacing in mm; `pretraining` keeps it, `none` is the spacing of each image."""
    if spacing == "pretraining":
        return settings
    return settings.model_copy(update={"spacing": None if spacing == "none" else spacing})
