"""From pretrained weights to an encoder for a task's channels and field of view, and to how it wants its images."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import PRIMUS, RESENC, build_backbone, build_plain, network_names
from viewalign.tasks.preprocessing import Frames, Preprocessor
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.shapes import Size
from viewalign.weights import initial, loading, sources
from viewalign.weights.loading import FittedWeights
from viewalign.weights.names import ENCODER
from viewalign.weights.token_order import Order

UNTRAINED = "untrained:"
"""`untrained:NAME` stands for a network of that name with fresh weights: the baseline that pretraining has to beat."""
Spacing = Literal["pretraining", "none"] | tuple[float, float, float]
_OWN_POOLING = ("feature_decoder.", "attention_pool.")


@dataclass(frozen=True)
class Pretrained:
    """What a task starts from.

    Attributes:
        network: a name of `networks.registry`.
        source: weights, or None for an untrained network.
        preparation: how the images of pretraining were prepared.
        size: (D, H, W) of the views of pretraining, None where it is not known.
        pooling: weights of a Primus's own pooling, empty where the file does not hold them.
    """

    network: str
    source: sources.Source | None
    preparation: PrepareSettings
    size: Size | None
    pooling: Mapping[str, torch.Tensor]


def read_pretrained(encoder: str | Path, token_order: Order | None = None) -> Pretrained:
    """Read what there is at a path, or prepare an untrained network (`untrained:resenc-l`).

    Raises:
        UserError: nothing there, or weights of a network that this package does not build.
    """
    text = str(encoder)
    if text.startswith(UNTRAINED):
        name = text.removeprefix(UNTRAINED)
        if name not in network_names():
            raise UserError(f"There is no network '{name}'; there are {', '.join(network_names())}.")
        return Pretrained(name, None, PrepareSettings(), None, {})
    source = initial.read_weight_source(encoder, token_order)
    return Pretrained(network_of(source), source, preparation_of(source.plan), source.size, _pooling(encoder, source))


def network_of(source: sources.Source) -> str:
    """Return the network of this package that weights are of, told by names and shapes alone.

    Raises:
        UserError: none fits.
    """
    architectures: Mapping[str, Any] = RESENC if source.family == "resenc" else PRIMUS
    starts = ENCODER[source.family]
    for name in architectures:
        side = (source.size or (64, 64, 64)) if source.family == "resenc" else _primus_size(name, source)
        with torch.device("meta"):
            net = build_plain(name, side)
        wanted = {k: v.shape for k, v in net.named_parameters() if k.startswith(starts) and v.ndim == 1}
        if all(k in source.state and source.state[k].shape == shape for k, shape in wanted.items()) and wanted:
            return name
    raise UserError(f"{source.file} holds an encoder that is none of {', '.join(architectures)}.")


def _primus_size(name: str, source: sources.Source) -> Size:
    d, h, w = (
        cells * side for cells, side in zip(source.grid or (8, 8, 8), PRIMUS[name]["patch_embed_size"], strict=True)
    )
    return d, h, w


def preparation_of(plan: Mapping[str, Any]) -> PrepareSettings:
    """Read spacing and normalisation of a pretraining from its adaptation plan; the defaults where it does not tell."""
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
    """Return the pooling of a Primus's pretraining, which runs alone hold: an encoder's export has none."""
    from viewalign.weights import checkpoints
    from viewalign.weights.run_folder import RunFolder

    run = RunFolder(Path(encoder))
    if source.family != "primus" or not run.config.is_file():
        return {}
    state, _ = checkpoints.load_newest(run.checkpoints)
    own = {k.removeprefix("student.backbone."): v for k, v in (state or {"method": {}})["method"].items()}
    return {k: v for k, v in own.items() if k.startswith(_OWN_POOLING)}


def build_encoder(
    start: Pretrained, size: Size, channels: int, min_share: float = 0.9, seed: int = 0
) -> tuple[Backbone, FittedWeights | None]:
    """Build a backbone without decoder for a field of view, filled with what was learnt.

    Args:
        start: from `read_pretrained`.
        size: (D, H, W) of the images; a Primus's table of positions is resized to it.
        channels: image channels; the first convolution is repeated over them and divided by how often.
        min_share: of the encoder's elements that the weights must cover.
        seed: of fresh weights.

    Raises:
        UserError: a size that the network cannot take, or weights that cover too little.
    """
    torch.manual_seed(seed)
    backbone = build_backbone(start.network, size, channels, key="size")
    backbone.drop_decoder()
    if start.source is None:
        return backbone, None
    fitted = loading.load_encoder_weights(backbone, start.source, size, min_share, "min_share")
    return backbone, fitted


@torch.no_grad()
def fill_own_pooling(backbone: Backbone, start: Pretrained) -> None:
    """Fill a Primus's own pooling from the run that it was pretrained in; a ResEnc's has no weights.

    Raises:
        UserError: the weights are not there, or are of another field of view.
    """
    own = {k: v for k, v in backbone.named_parameters() if k.startswith(_OWN_POOLING)}
    if start.source is None:
        return
    lacking = [name for name in own if name not in start.pooling]
    if lacking:
        raise UserError("The pretraining's own pooling is in a run's folder alone; name that, or take pool=average.")
    if any(start.pooling[name].shape != value.shape for name, value in own.items()):
        raise UserError(f"The pretraining's own pooling is of views of {start.size}; take that size, or pool=average.")
    for name, value in own.items():
        value.copy_(start.pooling[name])


def default_size(start: Pretrained) -> Size:
    """Return the field of view where none was asked for: the views of pretraining, else 64³."""
    return start.size or (64, 64, 64)


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
    encoder: str,
    spec: TaskSpec,
    patch_size: Size | None,
    spacing: Spacing,
    pool: str,
    like: Pretrained | None = None,
) -> tuple[Backbone, Preprocessor]:
    """Read an encoder and make it and its preprocessor fit a task.

    Args:
        encoder: see `read_pretrained`.
        spec: the task.
        patch_size: (D, H, W) in voxels; None for the views of pretraining.
        spacing: see `with_spacing`.
        pool: how vectors will be made.
        like: an encoder whose preparation and size are taken instead (for an untrained network).

    Raises:
        UserError: what does not fit.
    """
    start = read_pretrained(encoder)
    voxels = patch_size or default_size(like or start)
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


def with_spacing(settings: PrepareSettings, spacing: Spacing) -> PrepareSettings:
    """Return settings with another spacing in mm; `pretraining` leaves it, `none` is each image's own."""
    if spacing == "pretraining":
        return settings
    return settings.model_copy(update={"spacing": None if spacing == "none" else spacing})
