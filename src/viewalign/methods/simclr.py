"""SimCLR (Chen et al., arXiv:2002.05709): two views of a volume are told from the views of all other subjects."""

from __future__ import annotations

from torch import Tensor

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods import draws, examining
from viewalign.methods.base import Asks, Latents, Method, StepResult
from viewalign.methods.building import build_for, norm_for
from viewalign.methods.pooling import pooled
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.objectives.contrastive import view_nt_xent
from viewalign.views.batch import ViewBatch
from viewalign.views.drawing import draw_pair


class SimCLR(Method):
    """An encoder whose pooled features of two views are contrasted after a projector.

    Args:
        backbone: what is trained.
        width, norm: of the projector.
        temperature: of NT-Xent.
        seed: stochastic depth derives from (seed, sample, view).
    """

    def __init__(
        self,
        backbone: Backbone,
        width: int = 2048,
        norm: heads.Norm = "batch",
        temperature: float = 0.5,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, heads.projector(backbone.map_channels, width, norm)
        self._temperature, self._seed = temperature, seed
        backbone.freeze_unused()

    def latents(self, batch: ViewBatch, *, examine: bool = False, targets: bool = True) -> Latents:  # noqa: ARG002
        """Encode whole views and pool the encoder's own maps over what is valid."""
        draws.draw_paths(self.backbone, batch, self._seed, self.training)
        maps = self.backbone.maps(self.backbone.encode(batch.views.flatten(0, 1)))
        latents = {"pooled": pooled(maps, batch.valid.flatten(0, 1)).unflatten(0, batch.count)}
        return latents | (examining.examine(self.backbone, batch) if examine else {})

    def judge(self, batch: ViewBatch, latents: Latents, *, examine: bool = False) -> StepResult:
        """Contrast the projected views."""
        embedded = heads.embed(latents["pooled"], self.projector)
        contrast = view_nt_xent(embedded, batch.subject_id, self._temperature)
        features: dict[str, Tensor] = {}
        if examine:
            features = {**examining.rows_of(latents), "projected": embedded.detach().flatten(0, 1)}
        logs = {"loss": contrast.loss.detach(), "contrast_accuracy": contrast.accuracy}
        return StepResult(contrast.loss, logs, features, examining.shown(latents))

    def encoder(self) -> Backbone:
        """Return the one network."""
        return self.backbone


def asks(recipe: Recipe) -> Asks:  # noqa: ARG001
    """Ask for pairs of views of several subjects."""
    return Asks(draw=draw_pair, strangers="add some, or take another method.", images=2.0, decodes=False)


def build(recipe: Recipe) -> SimCLR:
    """Build the method that a recipe describes.

    Raises:
        UserError: no negatives, or a view size that the network cannot take.
    """
    if recipe.batch < 2:
        raise UserError(f"batch = {recipe.batch} leaves SimCLR without negatives; set batch to at least 2.")
    norm = norm_for(recipe, 2 * recipe.batch)
    return SimCLR(build_for(recipe), recipe.heads.width, norm, recipe.objectives.temperature, seed=recipe.seed)
