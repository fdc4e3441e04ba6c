"""VoCo (Wu et al., arXiv:2402.17300): tell from features how much a view overlaps each cell of a grid of views."""

from __future__ import annotations

from functools import partial

from viewalign.config import Count, Fraction, Recipe, Settings, Triple
from viewalign.losses.overlap import orthogonality, overlap_loss, overlap_similarity
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.pooled_features import PooledComparison
from viewalign.methods.requirements import NORM, build_for, norm_for, used_settings
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.utils.precision import send
from viewalign.views.batch import ViewBatch
from viewalign.views.layouts import overlaps, sample_grid


class MethodSettings(Settings):
    """The layout of views: `grid` of them along (D, H, W), `targets` anywhere over it.

    Views of which less than `min_valid` shows the volume are in no loss.
    """

    grid: Triple = (1, 4, 4)
    targets: Count = 4
    min_valid: Fraction = 0.25


class VoCo(PooledComparison):
    """An encoder whose similarity between views shall be their overlap.

    Args:
        backbone, width, norm, seed: as for `PooledComparison`.
        targets: how many of a volume's views are targets; the others are the grid's.
        min_valid: see `Pretext`.
    """

    def __init__(
        self,
        backbone: Backbone,
        targets: int = 4,
        width: int = 2048,
        norm: heads.Norm = "batch",
        min_valid: float = 0.25,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, width, norm, seed=seed)
        self._targets, self._min_valid = targets, min_valid

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:  # noqa: ARG002
        """Compare similarities with overlaps, and keep the grid's features apart."""
        counts = batch.valid.float().mean((2, 3, 4, 5)) >= self._min_valid
        embedded = heads.embed(latents["pooled"], self.projector, counts.float()).transpose(0, 1)
        counts = counts.T
        near, bases = embedded[:, : self._targets], embedded[:, self._targets :]
        overlap = send(overlaps(batch.to_volume, batch.size, self._targets), embedded.device)
        pairs = counts[:, : self._targets, None] & counts[:, None, self._targets :]
        # Targets learn towards the bases, which learn by being kept apart; else all might become alike.
        similarity = overlap_similarity(near, bases.detach())
        position = overlap_loss(similarity, overlap, pairs)
        apart = orthogonality(bases, counts[:, self._targets :])
        error = ((similarity - overlap).abs() * pairs).sum() / pairs.sum().clamp(min=1)
        told = {"position": position, "orthogonality": apart, "overlap_error": error}
        return self.result(position + apart, latents, told, features={"projected": embedded.flatten(0, 1)})


def _views(pretext: MethodSettings) -> int:
    return pretext.targets + pretext.grid[0] * pretext.grid[1] * pretext.grid[2]


USED_SETTINGS = NORM | used_settings("heads.width")


def requirements(recipe: Recipe) -> MethodRequirements:
    """Ask for a grid of views and targets over it."""
    pretext = MethodSettings.model_validate(recipe.pretext)
    draw = partial(sample_grid, grid=pretext.grid, targets=pretext.targets)
    return MethodRequirements(draw=draw, images=float(_views(pretext)), uses_decoder=False)


def build(recipe: Recipe) -> VoCo:
    """Build the method that a recipe describes.

    Raises:
        UserError: a view size that the network cannot take.
    """
    pretext = MethodSettings.model_validate(recipe.pretext)
    return VoCo(
        build_for(recipe),
        pretext.targets,
        recipe.heads.width,
        norm_for(recipe, _views(pretext) * recipe.batch),
        pretext.min_valid,
        seed=recipe.seed,
    )
