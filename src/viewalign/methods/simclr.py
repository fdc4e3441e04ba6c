"""SimCLR (Chen et al., arXiv:2002.05709): contrast two views of a volume with the views of all other subjects."""

from __future__ import annotations

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.losses.contrastive import view_nt_xent
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.requirements import NORM, PAIRS, build_for, norm_for, used_settings
from viewalign.methods.single_network import PooledComparison, step_result
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.views.batch import ViewBatch
from viewalign.views.sampling import sample_pair

USED_SETTINGS = PAIRS | NORM | used_settings("heads.width", "objectives.temperature")


class SimCLR(PooledComparison):
    """An encoder and a projector, trained by NT-Xent.

    Args:
        backbone, width, norm, seed: as for `PooledComparison`.
        temperature: of NT-Xent.
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
        super().__init__(backbone, width, norm, seed=seed)
        self._temperature = temperature

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Return NT-Xent of the projected views."""
        embedded = heads.embed(latents["pooled"], self.projector)
        contrast = view_nt_xent(embedded, batch.subject_id, self._temperature)
        features = {"projected": embedded.flatten(0, 1)}
        return step_result(contrast.loss, latents, {"contrast_accuracy": contrast.accuracy}, features=features)


def requirements(recipe: Recipe) -> MethodRequirements:  # noqa: ARG001
    """Return the requirements: pairs of views of several subjects."""
    return MethodRequirements(
        sampler=sample_pair,
        needs_multiple_subjects="add some, or use another method.",
        distinct_subjects=True,
        images=2.0,
        uses_decoder=False,
    )


def build(recipe: Recipe) -> SimCLR:
    """Build the method of a recipe.

    Raises:
        UserError: a batch without negatives.
    """
    if recipe.batch < 2:
        raise UserError(f"batch = {recipe.batch} leaves SimCLR without negatives; set batch to at least 2.")
    norm = norm_for(recipe, 2 * recipe.batch)
    return SimCLR(build_for(recipe), recipe.heads.width, norm, recipe.objectives.temperature, seed=recipe.seed)
