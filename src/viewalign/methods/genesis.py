"""Models Genesis (Zhou et al., arXiv:2004.07882): spoil a view in several ways, and restore all of it."""

from __future__ import annotations

from torch import Tensor

from viewalign.config import Fraction, Recipe, Settings
from viewalign.methods import draws, examining
from viewalign.methods.base import Latents, Method, StepResult
from viewalign.methods.building import build_for
from viewalign.networks.backbone import Backbone
from viewalign.objectives.reconstruction import masked_mse
from viewalign.views.batch import ViewBatch
from viewalign.views.distortion import Distortions


class Pretext(Settings):
    """Probabilities of spoiling; see `views.distortion.Distortions`."""

    p_shuffle: Fraction = 0.5
    p_bend: Fraction = 0.9
    p_paint: Fraction = 0.9
    p_outer: Fraction = 0.8
    largest: Fraction = 0.1


class ModelsGenesis(Method):
    """One network that restores spoilt views, judged over every valid voxel by mean squared error.

    Args:
        backbone: what is trained.
        changes: how views are spoilt.
        seed: what happens to a view derives from (seed, sample, view).
    """

    def __init__(self, backbone: Backbone, changes: Distortions, *, seed: int = 0) -> None:
        super().__init__()
        self.backbone, self._changes, self._seed = backbone, changes, seed
        backbone.freeze_unused(finest=True, paint=True)

    def latents(self, batch: ViewBatch, *, examine: bool = False, targets: bool = True) -> Latents:  # noqa: ARG002
        """Restore spoilt views."""
        spoilt = self.spoil(batch)
        draws.draw_paths(self.backbone, batch, self._seed, self.training)
        image = self.backbone.paint([self.backbone.finest(self.backbone.encode(spoilt))])
        latents = {"image": image.unflatten(0, batch.count), "input": spoilt.unflatten(0, batch.count)}
        return latents | (examining.examine(self.backbone, batch) if examine else {})

    def spoil(self, batch: ViewBatch) -> Tensor:
        """Return every view (N, C, D, H, W) spoilt in its own way."""
        return draws.spoil(batch, self._changes, self._seed)

    def judge(self, batch: ViewBatch, latents: Latents, *, examine: bool = False) -> StepResult:
        """Compare the image with the clean view."""
        image = latents["image"].flatten(0, 1)
        loss = masked_mse(image, batch.targets.flatten(0, 1), batch.valid.flatten(0, 1))
        pictures = {}
        if examine:
            pictures = {"reconstruction": image.detach(), "input": latents["input"].detach().flatten(0, 1)}
            pictures |= examining.shown(latents)
        logs = {"loss": loss.detach(), "reconstruction": loss.detach()}
        return StepResult(loss, logs, examining.rows_of(latents), pictures)

    def encoder(self) -> Backbone:
        """Return the one network."""
        return self.backbone


def build(recipe: Recipe) -> ModelsGenesis:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take.
    """
    pretext = Pretext.model_validate(recipe.pretext)
    return ModelsGenesis(build_for(recipe), Distortions(**pretext.model_dump()), seed=recipe.seed)
