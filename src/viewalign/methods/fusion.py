"""Volume Fusion (Wang et al., arXiv:2306.16925): two volumes fused block by block; say of each voxel by how much."""

from __future__ import annotations

import torch
from torch import Tensor

from viewalign.config import Count, Fraction, Recipe, Settings
from viewalign.losses.segmentation import cross_entropy, soft_dice
from viewalign.methods import rng as draws
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.requirements import build_for
from viewalign.methods.single_network import SingleNetwork
from viewalign.networks.backbone import Backbone
from viewalign.utils.precision import send
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import fuse, sample_fusion_labels


class MethodSettings(Settings):
    """How volumes are fused: `levels` shares of the foreground besides 0, in boxes of at most `largest` of a side."""

    levels: Count = 4
    largest: Fraction = 0.625


class VolumeFusion(SingleNetwork):
    """One network that tells the share of the foreground in each voxel of a fused pair.

    Volumes of a batch are taken in twos: the first is the foreground, the second the background. A batch of 2B volumes
    gives B fused images.

    Args:
        backbone: what is trained.
        levels, largest: see `views.fusion.draw_labels`.
        seed: boxes derive from (seed, sample).
    """

    def __init__(self, backbone: Backbone, levels: int = 4, largest: float = 0.625, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self.head = backbone.voxel_head(levels + 1)
        self._levels, self._largest = levels, largest
        backbone.freeze_unused(finest=True)

    def run(self, batch: ViewBatch) -> Latents:
        """Fuse and label; half as many images come out as volumes go in."""
        labels, valid, fused = self.fused(batch)
        self.backbone.sample_drop_path(draws.generators(batch, self._seed, "drop path")[::2] if self.training else None)
        logits = self.head(self.backbone.finest(self.backbone.encode(fused)))
        made = {"logits": logits, "labels": labels, "valid": valid, "input": fused}
        return {name: value[None] for name, value in made.items()}

    def fused(self, batch: ViewBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels (B/2, D, H, W), what is valid in both (B/2, 1, ...), and the fused images."""
        generators = draws.generators(batch, self._seed, "fusion")[::2]
        rows = [sample_fusion_labels(rng, batch.size, self._levels, largest=self._largest) for rng in generators]
        labels = send(torch.stack(rows), batch.views.device)
        images, valid = batch.views[0], batch.valid[0]
        return labels, valid[::2] & valid[1::2], fuse(images[::2], images[1::2], labels, self._levels)

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Return soft Dice plus cross-entropy."""
        logits, labels, valid = (latents[name][0] for name in ("logits", "labels", "valid"))
        dice, entropy = soft_dice(logits, labels, valid), cross_entropy(logits, labels, valid)
        right = ((logits.argmax(1) == labels)[:, None] & valid).sum() / valid.sum().clamp(min=1)
        told = {"dice_loss": dice, "cross_entropy": entropy, "fusion_accuracy": right}
        pictures = {"input": latents["input"][0].repeat_interleave(2, 0)} if return_diagnostics else {}
        return self.result(dice + entropy, latents, told, pictures)


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Ask for volumes in twos."""
    return MethodRequirements(group=2, images=0.5)


def build(recipe: Recipe) -> VolumeFusion:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take.
    """
    pretext = MethodSettings.model_validate(recipe.pretext)
    return VolumeFusion(build_for(recipe), pretext.levels, pretext.largest, seed=recipe.seed)
