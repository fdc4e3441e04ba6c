"""Base classes of methods that train one network without a teacher."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.losses.reconstruction import masked_huber, masked_mse
from viewalign.methods import rng
from viewalign.methods.base import Latents, Method, StepResult
from viewalign.methods.requirements import check_masks, used_settings
from viewalign.networks import heads, masking
from viewalign.networks.backbone import Backbone
from viewalign.networks.masking import BlockMask
from viewalign.utils.pooling import masked_mean, valid_fraction
from viewalign.utils.shapes import spatial_size
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import common_grid, resize

_MAX_ROWS = 4096
_MAX_CELLS = 8


class SingleNetwork(Method):
    """A method that trains one backbone, with heads if needed.

    Args:
        backbone: the network to train.
        seed: random numbers of an image derive from (seed, sample, view).
    """

    def __init__(self, backbone: Backbone, *, seed: int = 0) -> None:
        super().__init__()
        self.backbone, self._seed = backbone, seed

    @abstractmethod
    def run(self, batch: ViewBatch) -> Latents:
        """Run the network on a batch; see `Method.forward_features`."""

    def forward_features(self, batch: ViewBatch, *, return_diagnostics: bool = False, targets: bool = True) -> Latents:  # noqa: ARG002
        """Run the network, and for diagnostics its encoder on clean views."""
        # Diagnostics come first: a sparse encoder keeps its last mask, which recomputed activations read again.
        diagnostics = encoder_diagnostics(self.backbone, self.clean_views(batch)) if return_diagnostics else {}
        return self.run(batch) | diagnostics

    def clean_views(self, batch: ViewBatch) -> ViewBatch:
        """Return the batch whose targets are the clean views; overridden where views are deformed."""
        return batch

    def sample_drop_path(self, batch: ViewBatch) -> None:
        """Sample stochastic depth for the images of a batch."""
        rng.sample_drop_path(self.backbone, batch, self._seed, self.training)

    def encoder(self) -> Backbone:
        """Return the network."""
        return self.backbone


def step_result(
    loss: Tensor,
    latents: Latents,
    logs: Mapping[str, Tensor],
    pictures: Mapping[str, Tensor] | None = None,
    features: Mapping[str, Tensor] | None = None,
) -> StepResult:
    """Return a step's result.

    Args:
        loss: with gradient.
        latents: of the batch.
        logs: scalars by name, without the loss.
        pictures, features: used if the latents contain diagnostics, in addition to those; see `StepResult`.
    """
    logs = _detached({"loss": loss, **logs})
    if "diagnostics" not in latents:
        return StepResult(loss, logs)
    rows = latents["diagnostics"].flatten(3).transpose(2, 3).flatten(0, 2)
    rows = rows[latents["diagnostics_valid"].flatten() >= 0.5]
    features = {"encoder": rows[:: max(1, rows.shape[0] // _MAX_ROWS)], **(features or {})}
    pictures = {**(pictures or {}), "features": latents["diagnostics"].flatten(0, 1)}
    return StepResult(loss, logs, _detached(features), _detached(pictures))


def sum_terms(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms of a loss."""
    return torch.stack(list(terms.values())).sum()


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def encoder_diagnostics(backbone: Backbone, batch: ViewBatch) -> Latents:
    """Encode the clean views of a batch and resize the features to one grid of at most 8³ cells.

    Returns:
        "diagnostics" (V, B, ΣC, d, h, w), and "diagnostics_valid" (V, B, 1, d, h, w): the valid fraction of each cell.
    """
    backbone.sample_drop_path(None)
    maps = backbone.maps(backbone.encode(batch.targets.flatten(0, 1)))
    grid = common_grid([spatial_size(features) for features in maps], _MAX_CELLS)
    joined = torch.cat([resize(features, grid) for features in maps], dim=1)
    valid = valid_fraction(batch.valid.flatten(0, 1), grid)
    # Before torch 2.11, autocast reused weights that were cast here, without gradient, in the step that follows.
    torch.clear_autocast_cache()
    return {"diagnostics": joined.unflatten(0, batch.count), "diagnostics_valid": valid.unflatten(0, batch.count)}


class PooledComparison(SingleNetwork):
    """An encoder with a projector of its pooled features; subclasses compare the projections in `compute_loss`.

    Args:
        backbone, seed: as for `SingleNetwork`.
        width, norm: of the projector.
    """

    def __init__(self, backbone: Backbone, width: int = 2048, norm: heads.Norm = "batch", *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.projector = heads.projector(backbone.map_channels, width, norm)
        backbone.freeze_unused()

    def run(self, batch: ViewBatch) -> Latents:
        """Encode views and pool the encoder's maps over valid voxels."""
        self.sample_drop_path(batch)
        maps = self.backbone.maps(self.backbone.encode(batch.views.flatten(0, 1)))
        return {"pooled": masked_mean(maps, batch.valid.flatten(0, 1)).unflatten(0, batch.count)}


@dataclass(frozen=True)
class MaskedLoss:
    """Reconstruction error of views before noise and blur.

    Attributes:
        kind: "huber" or "mse", over masked valid voxels; over all valid voxels if nothing is masked.
        huber_delta: error at which the Huber loss becomes linear.
        weight: of the loss; it sets the scale relative to gradient clipping.
    """

    kind: Literal["huber", "mse"] = "huber"
    huber_delta: float = 1.0
    weight: float = 1.0

    def __call__(self, image: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        """Return the error without the weight; arguments as for `masked_huber`."""
        if self.kind == "mse":
            return masked_mse(image, target, counts)
        return masked_huber(image, target, counts, self.huber_delta)


MASKED_LOSS = used_settings("objectives.reconstruction", "objectives.huber_delta", "objectives.reconstruction_weight")
"""The settings that `masked_loss` uses."""


def masked_loss(recipe: Recipe) -> MaskedLoss:
    """Return the reconstruction loss of a recipe."""
    terms = recipe.objectives
    return MaskedLoss(terms.reconstruction, terms.huber_delta, terms.reconstruction_weight)


def check_masked_modelling(recipe: Recipe, backbone: Backbone) -> None:
    """Check that the only term of masked modelling is computed over at least one block and has a weight.

    Raises:
        UserError: it would train on nothing.
    """
    if recipe.masking.ratio > 0:
        check_masks(recipe, backbone.block, "masking.ratio=0 to restore whole views")
    if recipe.objectives.reconstruction_weight == 0:
        raise UserError(
            f"objectives.reconstruction_weight=0 leaves {recipe.method} without a loss; it needs a weight above 0."
        )


class MaskedModelling(SingleNetwork):
    """Masked image modelling: blocks of a view are masked and the image is restored (`restore`).

    Args:
        backbone, seed: as for `SingleNetwork`.
        mask_ratio: fraction of blocks that are masked.
        loss: of the restored image.
    """

    def __init__(self, backbone: Backbone, *, seed: int = 0, mask_ratio: float = 0.75, loss: MaskedLoss) -> None:
        super().__init__(backbone, seed=seed)
        self._mask_ratio, self._loss = mask_ratio, loss

    @abstractmethod
    def restore(self, images: Tensor, mask: BlockMask | None) -> Tensor:
        """Return restored images (N, C, D, H, W) from images whose masked blocks are hidden."""

    def run(self, batch: ViewBatch) -> Latents:
        """Mask and restore views."""
        mask = rng.block_masks(batch, self._seed, self.backbone.block, self._mask_ratio)
        self.sample_drop_path(batch)
        image = self.restore(batch.views.flatten(0, 1), mask if self._mask_ratio > 0 else None)
        return {"mask": mask.hidden.unflatten(0, batch.count), "image": image.unflatten(0, batch.count)}

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Return the error of the restored image over masked voxels."""
        image, valid = latents["image"].flatten(0, 1), batch.valid.flatten(0, 1)
        hidden = masking.to_voxels(latents["mask"].flatten(0, 1), batch.size, self.backbone.block)
        error = self._loss(image, batch.targets.flatten(0, 1), (hidden & valid) if self._mask_ratio > 0 else valid)
        pictures = {"reconstruction": image, "mask": hidden}
        return step_result(self._loss.weight * error, latents, {"reconstruction": error}, pictures)
