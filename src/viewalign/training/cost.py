"""Operations of a recipe's step, counted without running it, and settings that need less memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.registry import requirements_of
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone
from viewalign.recipes.loading import change
from viewalign.training.simulation import simulated_peak
from viewalign.views.feature_grids import common_grid

_BACKWARD = 2.0  # a backward pass costs as much as two forward passes


@dataclass(frozen=True)
class Remedy:
    """A setting that needs less memory, as `key=value`, and the bytes of a step with it."""

    setting: str
    bytes: int


def step_flops(recipe: Recipe) -> float:
    """Count the floating-point operations of one optimizer step on the global batch.

    A multiply-add counts as two. Included are student forward and backward, teacher forward, and CVA's heads.
    """
    requirements = requirements_of(recipe)
    backbone = _backbone_without_memory(recipe)
    counts = _count(backbone, recipe)
    drops = requirements.drops_tokens and backbone.stride == backbone.block and recipe.network.name.startswith("primus")
    share = 1.0 - recipe.masking.ratio * (1.0 - recipe.masking.whole) if drops else 1.0
    terms = recipe.objectives
    compared = recipe.method == "cva" and (terms.consistency_weight > 0 or terms.contrastive_weight > 0)
    forward = counts["encode"] * share
    forward += counts["dense"] if compared else 0.0
    forward += counts["decode"] if requirements.uses_decoder else 0.0
    heads = _head_flops(recipe, backbone) if compared else 0.0
    again = 1.0 if recipe.runtime.recompute else 0.0
    student = (forward + heads) * (1.0 + _BACKWARD + again)
    teacher = counts["encode"] + counts["dense"] + heads if compared else 0.0
    targets = requirements.teacher_images * recipe.batch * counts["encode"]
    return requirements.images * recipe.batch * (student + teacher) + targets


def forward_flops(recipe: Recipe, decoder: bool) -> float:
    """Count the floating-point operations of a forward pass of one view through the encoder, and the decoder."""
    counts = _count(_backbone_without_memory(recipe), recipe)
    return counts["encode"] + (counts["decode"] if decoder else 0.0)


def _backbone_without_memory(recipe: Recipe) -> Backbone:
    network = recipe.network
    with torch.device("meta"):
        return build_backbone(network.name, recipe.views.patch_size, network.channels, recipe.masking.block)


def remedies(recipe: Recipe, precision: str, processes: int = 1) -> list[Remedy]:
    """Return settings that need less memory, each with the simulated peak bytes of a step with only this change."""
    found = []
    for settings in _smaller(recipe, processes):
        try:
            changed = change(recipe, settings)
        except UserError:  # not supported by the method or its network
            continue
        found.append(Remedy(_override(settings), simulated_peak(changed, precision, processes)))
    return found


def _smaller(recipe: Recipe, processes: int) -> Iterator[dict[str, Any]]:
    """Yield the settings to try; the first two do not change the loss."""
    group, share, parts = requirements_of(recipe).group, recipe.batch // processes, recipe.runtime.accumulate
    if not recipe.runtime.recompute:
        yield {"runtime": {"recompute": True}}
    more = [k for k in range(parts + 1, share + 1) if share % k == 0 and share // k % group == 0]
    if more:
        yield {"runtime": {"accumulate": more[0]}}
    if share % (2 * group * parts) == 0:
        yield {"batch": recipe.batch // 2}
    sides = [side * 3 // 4 // 32 * 32 for side in recipe.views.patch_size]
    if min(sides) > 0:
        yield {"views": {"patch_size": sides}}


def _override(settings: dict[str, Any], group: str = "") -> str:
    """Return a setting as an override `key=value`."""
    ((name, value),) = settings.items()
    if isinstance(value, dict):
        return _override(value, f"{name}.")
    return f"{group}{name}={json.dumps(value, separators=(',', ':'))}"


def _count(backbone: Backbone, recipe: Recipe) -> dict[str, float]:
    """Count the forward passes of one view on the meta device."""
    image = torch.empty(1, recipe.network.channels, *recipe.views.patch_size, device="meta")
    counts: dict[str, float] = {}
    with torch.no_grad():
        encoded = None
        for name in ("encode", "dense", "decode"):
            with FlopCounterMode(display=False) as counter:
                if name == "encode":
                    encoded = backbone.encode(image)
                elif encoded is not None:
                    _: Tensor | list[Tensor] = (
                        backbone.dense(encoded) if name == "dense" else backbone.reconstruct(encoded)
                    )
            counts[name] = float(counter.get_total_flops())
    return counts


def _head_flops(recipe: Recipe, backbone: Backbone) -> float:
    """Count the forward pass of projector and predictor on the dense vectors of one view."""
    terms, heads = recipe.objectives, recipe.heads
    grid = terms.cells if terms.order == "align_first" else common_grid(backbone.grids(recipe.views.patch_size))
    width = heads.width
    layers = sum(backbone.stage_channels) * width + 2 * width * width + 2 * width * heads.predictor_width
    used = terms.consistency_weight > 0 and heads.projector == "both"
    return 2.0 * float(np.prod(grid)) * layers if used else 0.0
