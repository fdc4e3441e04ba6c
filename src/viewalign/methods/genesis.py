"""Models Genesis (Zhou et al., arXiv:2004.07882): spoil a view in several ways, and restore all of it."""

from __future__ import annotations

from torch import Tensor

from viewalign.config import Fraction, Recipe, Settings
from viewalign.losses.reconstruction import masked_mse
from viewalign.methods import rng
from viewalign.methods.base import Latents, StepResult
from viewalign.methods.requirements import build_for
from viewalign.methods.single_network import SingleNetwork
from viewalign.networks.backbone import Backbone
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import CorruptionConfig


class MethodSettings(Settings):
    """Probabilities of spoiling; see `views.distortion.Distortions`."""

    p_shuffle: Fraction = 0.5
    p_bend: Fraction = 0.9
    p_paint: Fraction = 0.9
    p_outer: Fraction = 0.8
    largest: Fraction = 0.1


class ModelsGenesis(SingleNetwork):
    """One network that restores spoilt views, judged over every valid voxel by mean squared error.

    Args:
        backbone: what is trained.
        changes: how views are spoilt.
        seed: what happens to a view derives from (seed, sample, view).
    """

    def __init__(self, backbone: Backbone, changes: CorruptionConfig, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self._changes = changes
        backbone.freeze_unused(finest=True, to_image=True)

    def run(self, batch: ViewBatch) -> Latents:
        """Restore spoilt views."""
        spoilt = self.spoil(batch)
        self.sample_drop_path(batch)
        image = self.backbone.to_image([self.backbone.finest(self.backbone.encode(spoilt))])
        return {"image": image.unflatten(0, batch.count), "input": spoilt.unflatten(0, batch.count)}

    def spoil(self, batch: ViewBatch) -> Tensor:
        """Return every view (N, C, D, H, W) spoilt in its own way."""
        return rng.corrupt_views(batch, self._changes, self._seed)

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Compare the image with the clean view."""
        image = latents["image"].flatten(0, 1)
        loss = masked_mse(image, batch.targets.flatten(0, 1), batch.valid.flatten(0, 1))
        pictures = {"reconstruction": image, "input": latents["input"].flatten(0, 1)}
        return self.result(loss, latents, {"reconstruction": loss}, pictures)


def build(recipe: Recipe) -> ModelsGenesis:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take.
    """
    pretext = MethodSettings.model_validate(recipe.pretext)
    return ModelsGenesis(build_for(recipe), CorruptionConfig(**pretext.model_dump()), seed=recipe.seed)
