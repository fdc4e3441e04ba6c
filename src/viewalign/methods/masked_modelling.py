"""What masked image modelling has in common: hide blocks of a view, restore the image, count where it was hidden."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from viewalign.config import Recipe
from viewalign.losses.reconstruction import masked_huber, masked_mse
from viewalign.methods import rng
from viewalign.methods.base import Latents, StepResult
from viewalign.methods.requirements import used_settings
from viewalign.methods.single_network import SingleNetwork
from viewalign.networks import masking
from viewalign.networks.backbone import Backbone
from viewalign.networks.masking import BlockMask
from viewalign.views.batch import ViewBatch


@dataclass(frozen=True)
class MaskedLoss:
    """How a restored image is compared with the view before noise and blur.

    Attributes:
        kind: "huber" or "mse", over hidden valid voxels; over all valid ones where nothing is hidden.
        huber_delta: where Huber's loss turns linear.
        weight: of the loss; it sets the scale against the clipping of gradients.
    """

    kind: Literal["huber", "mse"] = "huber"
    huber_delta: float = 1.0
    weight: float = 1.0

    def __call__(self, image: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        """Return the error, without the weight."""
        if self.kind == "mse":
            return masked_mse(image, target, counts)
        return masked_huber(image, target, counts, self.huber_delta)


class MaskedRestoration(SingleNetwork):
    """One network that restores what is hidden from it; how it does so is the method's own.

    Args:
        backbone: what is trained.
        seed: masks and stochastic depth derive from (seed, sample, view).
        mask_ratio: share of blocks that are hidden.
        loss: see `MaskedLoss`.
    """

    def __init__(self, backbone: Backbone, *, seed: int = 0, mask_ratio: float = 0.75, loss: MaskedLoss) -> None:
        super().__init__(backbone, seed=seed)
        self._mask_ratio, self._loss = mask_ratio, loss

    @abstractmethod
    def restore(self, images: Tensor, mask: BlockMask | None) -> Tensor:
        """Return images (N, C, D, H, W) restored from those given, of which `mask` hides blocks."""

    def run(self, batch: ViewBatch) -> Latents:
        """Restore masked views."""
        mask = rng.block_masks(batch, self._seed, self.backbone.block, self._mask_ratio)
        self.sample_drop_path(batch)
        image = self.restore(batch.views.flatten(0, 1), mask if self._mask_ratio > 0 else None)
        return {"mask": mask.hidden.unflatten(0, batch.count), "image": image.unflatten(0, batch.count)}

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Compare the image with the view before noise and blur, where it was hidden."""
        image, valid = latents["image"].flatten(0, 1), batch.valid.flatten(0, 1)
        hidden = masking.to_voxels(latents["mask"].flatten(0, 1), batch.size, self.backbone.block)
        error = self._loss(image, batch.targets.flatten(0, 1), (hidden & valid) if self._mask_ratio > 0 else valid)
        pictures = {"reconstruction": image, "mask": hidden}
        return self.result(self._loss.weight * error, latents, {"reconstruction": error}, pictures)


LOSS = used_settings("objectives.reconstruction", "objectives.huber_delta", "objectives.reconstruction_weight")
"""What `loss_of` reads."""


def loss_of(recipe: Recipe) -> MaskedLoss:
    """Unpack the loss that a recipe describes."""
    terms = recipe.objectives
    return MaskedLoss(terms.reconstruction, terms.huber_delta, terms.reconstruction_weight)
