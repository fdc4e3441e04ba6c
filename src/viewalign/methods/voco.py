"""VoCo (Wu et al., arXiv:2402.17300): predict the overlap of a view with each view of a grid from their features."""

from __future__ import annotations

import math
from functools import partial

import torch
from pydantic import Field

from viewalign.config import Recipe
from viewalign.losses.overlap import orthogonality, overlap_loss, overlap_similarity
from viewalign.methods.base import Latents, MethodRequirements, StepResult
from viewalign.methods.requirements import NORM, build_for, norm_for, used_settings
from viewalign.methods.single_network import PooledComparison, step_result
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.utils.precision import send
from viewalign.utils.settings import Count, Fraction, Settings, Triple
from viewalign.views.batch import ViewBatch
from viewalign.views.layouts import box_overlaps, sample_grid

USED_SETTINGS = NORM | used_settings("heads.width")


class MethodSettings(Settings):
    """VoCo: a grid of views and targets over it (arXiv:2402.17300)."""

    grid: Triple = Field((1, 4, 4), description="Views of the grid along (D, H, W).")
    targets: Count = Field(4, description="Views anywhere over the grid whose overlap with its views is predicted.")
    min_valid: Fraction = Field(
        0.25, description="Views with a smaller fraction of voxels inside the volume are excluded from all losses."
    )

    @property
    def views(self) -> int:
        """Number of views of a volume."""
        return self.targets + math.prod(self.grid)


class VoCo(PooledComparison):
    """An encoder whose similarity between views predicts their overlap.

    Args:
        backbone, width, norm, seed: as for `PooledComparison`.
        targets: number of target views; the others are those of the grid.
        min_valid: see `MethodSettings`.
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
        """Return the error of the overlaps plus the orthogonality of the grid's features."""
        counts = batch.valid.float().mean((2, 3, 4, 5)) >= self._min_valid
        embedded = heads.embed(latents["pooled"], self.projector, counts.float()).transpose(0, 1)
        counts = counts.T
        targets, bases = embedded[:, : self._targets], embedded[:, self._targets :]
        overlap = send(box_overlaps(batch.to_volume, batch.size, self._targets), embedded.device)
        pairs = counts[:, : self._targets, None] & counts[:, None, self._targets :]
        # Bases are detached here and trained by orthogonality only; otherwise all features could become alike.
        similarity = overlap_similarity(targets, bases.detach())
        position = overlap_loss(similarity, overlap, pairs)
        apart = orthogonality(bases, counts[:, self._targets :])
        error = ((similarity - overlap).abs() * pairs).sum() / pairs.sum().clamp(min=1)
        # Without a pair nothing is learnt, and the largest error is reported. A figure that some processes leave out
        # could not be averaged over all, and to look for a pair would wait for a GPU.
        error = torch.where(pairs.any(), error, 1.0)
        logs = {"position": position, "orthogonality": apart, "overlap_error": error}
        return step_result(position + apart, latents, logs, features={"projected": embedded.flatten(0, 1)})


def requirements(recipe: Recipe) -> MethodRequirements:
    """Return the requirements: a grid of views and targets over it."""
    settings = MethodSettings.model_validate(recipe.pretext)
    sampler = partial(sample_grid, grid=settings.grid, targets=settings.targets)
    return MethodRequirements(
        sampler=sampler, min_valid=settings.min_valid, images=float(settings.views), uses_decoder=False
    )


def build(recipe: Recipe) -> VoCo:
    """Build the method of a recipe."""
    settings = MethodSettings.model_validate(recipe.pretext)
    norm = norm_for(recipe, settings.views * recipe.batch)
    return VoCo(build_for(recipe), settings.targets, recipe.heads.width, norm, settings.min_valid, seed=recipe.seed)
