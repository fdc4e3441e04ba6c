"""What a recipe's step costs: arithmetic and memory of its networks, counted without running them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from viewalign.config import Recipe
from viewalign.methods.registry import asks_of
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone
from viewalign.views.grids import common_grid

# Peak of the code released with the paper, fp32, 4 crops of 64³, less what its weights and its import take: 5.6 GB
# (ResEnc-L) and 4.7 GB (Primus-M), hence so many bytes a voxel; half of it in 16 bits agrees with nnU-Net's published
# 22.7 GB for ResEnc-L.
_ACTIVATION_BYTES = {"resenc-l": 5300.0, "primus-m": 4500.0}
_BACKWARD = 2.0  # a backward pass costs two forward passes
_RECOMPUTED = 0.25  # of the activations stay where they are worked out again


@dataclass(frozen=True)
class StepCost:
    """One optimizer step over the whole batch.

    Attributes:
        flops: floating-point operations, a multiplication and an addition being two.
        state_bytes: weights, gradients, optimizer and teacher, in float32.
        activation_bytes: of the largest part of a batch, in float32; None for a network nobody has measured.
    """

    flops: float
    state_bytes: float
    activation_bytes: float | None

    def memory(self, precision: str) -> float | None:
        """Return the bytes that a step needs."""
        if self.activation_bytes is None:
            return None
        return self.state_bytes + self.activation_bytes * (0.5 if precision == "bf16" else 1.0)


def step_cost(recipe: Recipe) -> StepCost:
    """Count a step of a recipe: student forward and backward, teacher forward where there is one, CVA's heads."""
    asks = asks_of(recipe)
    with torch.device("meta"):
        backbone = build_backbone(recipe.network.name, recipe.views.size, recipe.network.channels, recipe.masking.block)
    counts = _count(backbone, recipe)
    drops = asks.drops and backbone.stride == backbone.block and recipe.network.name.startswith("primus")
    share = 1.0 - recipe.masking.ratio if drops else 1.0
    terms = recipe.objectives
    compared = recipe.method == "cva" and (terms.consistency_weight > 0 or terms.contrastive_weight > 0)
    forward = counts["encode"] * share
    forward += counts["dense"] if compared else 0.0
    forward += counts["decode"] if asks.decodes else 0.0
    heads = _head_flops(recipe, backbone) if compared else 0.0
    again = 1.0 if recipe.runtime.recompute else 0.0
    student = (forward + heads) * (1.0 + _BACKWARD + again)
    teacher = counts["encode"] + counts["dense"] + heads if compared else 0.0
    crops = asks.images * recipe.batch
    weights = sum(p.numel() for p in backbone.parameters())
    moments = 2 if recipe.optim.name == "adamw" else 1
    voxels = float(np.prod(recipe.views.size)) * crops / recipe.runtime.accumulate
    per_voxel = _ACTIVATION_BYTES.get(recipe.network.name)
    kept = _RECOMPUTED if recipe.runtime.recompute else 1.0
    return StepCost(
        flops=crops * (student + teacher),
        state_bytes=4.0 * weights * (3 + moments),
        activation_bytes=None if per_voxel is None else per_voxel * voxels * kept,
    )


def _count(backbone: Backbone, recipe: Recipe) -> dict[str, float]:
    """Count the forward passes of one crop on tensors without storage."""
    image = torch.empty(1, recipe.network.channels, *recipe.views.size, device="meta")
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
    """Return the forward pass of projector and predictor on the dense vectors of one crop."""
    terms, heads = recipe.objectives, recipe.heads
    grid = terms.cells if terms.order == "align_first" else common_grid(backbone.grids(recipe.views.size))
    width = heads.width
    layers = sum(backbone.stage_channels) * width + 2 * width * width + 2 * width * heads.predictor_width
    return 2.0 * float(np.prod(grid)) * layers if terms.consistency_weight > 0 else 0.0
