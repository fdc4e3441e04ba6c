"""One vector an image, from the encoder's own maps: what SimCLR and VoCo compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from viewalign.methods import draws, examining
from viewalign.methods.base import Latents, Method, StepResult
from viewalign.methods.dense import grid_of
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.precision import full_precision, raised
from viewalign.views.alignment import valid_share
from viewalign.views.batch import ViewBatch


@full_precision
def pooled(maps: Sequence[Tensor], valid: Tensor) -> Tensor:
    """Return one vector (N, ΣC) an image: the mean of each map over its valid cells, concatenated; float32.

    Args:
        maps: of a network, (N, C, d, h, w) each.
        valid: (N, 1, D, H, W) of the views they were made from.
    """
    columns = []
    for one in maps:
        share = valid_share(valid, grid_of(one)).to(torch.promote_types(one.dtype, torch.float32))
        weight = share / share.sum((2, 3, 4), keepdim=True).clamp(min=1e-6)
        columns.append((raised(one) * weight).sum((2, 3, 4)))
    return torch.cat(columns, dim=1)


class PooledComparison(Method):
    """An encoder and a projector of its pooled features; what is asked of them is the method's own (`judge`).

    Args:
        backbone: what is trained.
        width, norm: of the projector.
        seed: stochastic depth derives from (seed, sample, view).
    """

    def __init__(self, backbone: Backbone, width: int = 2048, norm: heads.Norm = "batch", *, seed: int = 0) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, heads.projector(backbone.map_channels, width, norm)
        self._seed = seed
        backbone.freeze_unused()

    def latents(self, batch: ViewBatch, *, examine: bool = False, targets: bool = True) -> Latents:  # noqa: ARG002
        """Encode whole views and pool the encoder's own maps over what is valid."""
        draws.draw_paths(self.backbone, batch, self._seed, self.training)
        maps = self.backbone.maps(self.backbone.encode(batch.views.flatten(0, 1)))
        latents = {"pooled": pooled(maps, batch.valid.flatten(0, 1)).unflatten(0, batch.count)}
        return latents | (examining.examine(self.backbone, batch) if examine else {})

    def result(self, logs: dict[str, Tensor], latents: Latents, embedded: Tensor, examine: bool) -> StepResult:
        """Return a step's result; `logs["loss"]` has the gradient, `embedded` are the projected vectors (..., C)."""
        features: dict[str, Tensor] = {}
        if examine:
            features = {**examining.rows_of(latents), "projected": embedded.detach().flatten(0, 1)}
        told = {name: value.detach() for name, value in logs.items()}
        return StepResult(logs["loss"], told, features, examining.shown(latents))

    def encoder(self) -> Backbone:
        """Return the one network."""
        return self.backbone
