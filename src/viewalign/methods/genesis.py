"""Models Genesis (Zhou et al., arXiv:2004.07882): restore a view that was corrupted in several ways."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from viewalign.config import Recipe
from viewalign.losses.reconstruction import masked_mse
from viewalign.methods import rng
from viewalign.methods.base import Latents, StepResult
from viewalign.methods.requirements import build_for
from viewalign.methods.single_network import SingleNetwork, step_result
from viewalign.networks.backbone import Backbone
from viewalign.utils.settings import Fraction, Settings
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import CorruptionConfig


class MethodSettings(Settings):
    """Models Genesis: how views are corrupted (arXiv:2004.07882)."""

    p_shuffle: Fraction = Field(0.5, description="Probability of shuffling voxels within small boxes.")
    p_nonlinear: Fraction = Field(0.9, description="Probability of mapping intensities by a random Bézier curve.")
    p_paint: Fraction = Field(0.9, description="Probability of replacing boxes, or all but some boxes, by noise.")
    p_outpaint: Fraction = Field(0.8, description="Fraction of these cases in which all but some boxes are replaced.")
    shuffle_size: Fraction = Field(0.1, description="Largest side of a shuffled box, as a fraction of the view's side.")


class ModelsGenesis(SingleNetwork):
    """One network that restores corrupted views, by mean squared error over valid voxels.

    Args:
        backbone, seed: as for `SingleNetwork`.
        corruption: which corruptions are applied.
    """

    def __init__(self, backbone: Backbone, corruption: CorruptionConfig, *, seed: int = 0) -> None:
        super().__init__(backbone, seed=seed)
        self._corruption = corruption
        backbone.freeze_unused(finest=True, to_image=True)

    def run(self, batch: ViewBatch) -> Latents:
        """Corrupt and restore views."""
        corrupted = self.corrupt(batch)
        self.sample_drop_path(batch)
        image = self.backbone.to_image([self.backbone.finest(self.backbone.encode(corrupted))])
        return {"image": image.unflatten(0, batch.count), "input": corrupted.unflatten(0, batch.count)}

    def corrupt(self, batch: ViewBatch) -> Tensor:
        """Return every view (N, C, D, H, W) corrupted."""
        return rng.corrupt_views(batch, self._corruption, self._seed)

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Return the error of the restored image."""
        image = latents["image"].flatten(0, 1)
        loss = masked_mse(image, batch.targets.flatten(0, 1), batch.valid.flatten(0, 1))
        pictures = {"reconstruction": image, "input": latents["input"].flatten(0, 1)}
        return step_result(loss, latents, {"reconstruction": loss}, pictures)


def build(recipe: Recipe) -> ModelsGenesis:
    """Build the method of a recipe."""
    settings = MethodSettings.model_validate(recipe.pretext)
    return ModelsGenesis(build_for(recipe), CorruptionConfig(**settings.model_dump()), seed=recipe.seed)
