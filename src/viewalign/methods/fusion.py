"""Volume Fusion (Wang et al., arXiv:2306.16925): predict the mixing ratio of each voxel of two fused volumes."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from viewalign.config import Recipe
from viewalign.losses.segmentation import cross_entropy, soft_dice
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.requirements import build_for
from viewalign.methods.rng import generators
from viewalign.methods.single_network import SingleNetwork, step_result
from viewalign.networks.backbone import Backbone
from viewalign.utils.precision import send
from viewalign.utils.settings import Count, Fraction, Settings
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import fuse, sample_fusion_labels


class MethodSettings(Settings):
    """Volume Fusion: how two volumes are mixed (arXiv:2306.16925)."""

    levels: Count = Field(4, description="Number of non-zero fractions of the foreground volume.")
    largest: Fraction = Field(0.625, description="Largest side of a mixed box, as a fraction of the view's side.")


class VolumeFusion(SingleNetwork):
    """One network that segments the fraction of the foreground in a fused pair of volumes.

    Volumes of a batch are taken in pairs: the first is the foreground, the second the background. A batch of 2B volumes
    gives B fused images.

    Args:
        backbone, seed: as for `SingleNetwork`.
        levels, largest: as for `sample_fusion_labels`.
    """

    def __init__(self, backbone: Backbone, levels: int = 4, largest: float = 0.625, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.head = backbone.voxel_head(levels + 1)
        self._levels, self._largest = levels, largest
        backbone.freeze_unused(finest=True)

    def run(self, batch: ViewBatch) -> Latents:
        """Fuse pairs of volumes and predict the labels of their voxels."""
        labels, valid, fused = self.fuse(batch)
        self.backbone.sample_drop_path(generators(batch, self._seed, "drop path")[::2] if self.training else None)
        logits = self.head(self.backbone.finest(self.backbone.encode(fused)))
        latents = {"logits": logits, "labels": labels, "valid": valid, "input": fused}
        return {name: value[None] for name, value in latents.items()}

    def fuse(self, batch: ViewBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels (B/2, D, H, W), voxels valid in both (B/2, 1, D, H, W), and fused images (B/2, C, D, H, W)."""
        rngs = generators(batch, self._seed, "fusion")[::2]
        rows = [sample_fusion_labels(rng, batch.size, self._levels, largest=self._largest) for rng in rngs]
        labels = send(torch.stack(rows), batch.views.device)
        images, valid = batch.views[0], batch.valid[0]
        return labels, valid[::2] & valid[1::2], fuse(images[::2], images[1::2], labels, self._levels)

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Return soft Dice plus cross-entropy."""
        logits, labels, valid = (latents[name][0] for name in ("logits", "labels", "valid"))
        dice, entropy = soft_dice(logits, labels, valid), cross_entropy(logits, labels, valid)
        accuracy = ((logits.argmax(1) == labels)[:, None] & valid).sum() / valid.sum().clamp(min=1)
        logs = {"dice_loss": dice, "cross_entropy": entropy, "fusion_accuracy": accuracy}
        pictures = {"input": latents["input"][0].repeat_interleave(2, 0)} if return_diagnostics else {}
        return step_result(dice + entropy, latents, logs, pictures)


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Return the requirements: volumes in pairs."""
    return MethodRequirements(group=2, distinct_subjects=True, images=0.5)


def build(recipe: Recipe) -> VolumeFusion:
    """Build the method of a recipe."""
    settings = MethodSettings.model_validate(recipe.pretext)
    return VolumeFusion(build_for(recipe), settings.levels, settings.largest, seed=recipe.seed)
