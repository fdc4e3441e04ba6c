"""Consistent View Alignment (Vaish et al., arXiv:2509.13846): masked reconstruction, aligned features, contrast.

The student sees masked views, the teacher whole ones. Features of either view are read at the same places of the
volume and compared across the two networks; embeddings of whole images are contrasted with those of other subjects.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.losses.consistency import cosine_consistency, gram_consistency
from viewalign.losses.contrastive import Contrast, dense_nt_xent, global_nt_xent
from viewalign.losses.reconstruction import masked_huber, masked_mse
from viewalign.methods import rng
from viewalign.methods.base import Latents, Method, MethodRequirements, StepResult
from viewalign.methods.dense_features import DenseAlignment, grid_of
from viewalign.methods.projection_branch import Head, ProjectionBranch
from viewalign.methods.requirements import PAIRS, build_for, norm_for, used_settings
from viewalign.networks import masking as masks
from viewalign.networks import teacher
from viewalign.networks.backbone import Backbone
from viewalign.networks.heads import embed
from viewalign.utils.precision import at_least_float32
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import common_grid
from viewalign.views.latentcampus import sample_latentcampus
from viewalign.views.sampling import sample_pair


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three terms; a term of weight 0 is not computed."""

    reconstruction: float = 5.0
    consistency: float = 1.0
    contrastive: float = 0.1


@dataclass(frozen=True)
class LossConfig:
    """Which form the terms take.

    Attributes:
        reconstruction, consistency: as named in `ObjectiveSettings`.
        over_batch: whether places of other pairs are negatives of dense NT-Xent too.
        temperature: of NT-Xent.
        huber_delta: of the reconstruction.
    """

    reconstruction: Literal["huber", "mse"] = "huber"
    consistency: Literal["cosine", "nt_xent", "gram"] = "cosine"
    over_batch: bool = False
    temperature: float = 0.5
    huber_delta: float = 1.0


class ConsistentViewAlignment(Method):
    """The whole of CVA around any network.

    Args:
        student: the branch that learns; the teacher starts as its copy.
        places: how dense features come to the places that views share.
        momentum: of the teacher, by optimizer step.
        seed: masks and stochastic depth derive from (seed, sample, view).
        mask_ratio: share of blocks the student does not see.
        weights: of the three terms.
        terms: their forms.
    """

    def __init__(
        self,
        student: ProjectionBranch,
        places: DenseAlignment,
        momentum: teacher.Momentum,
        *,
        seed: int = 0,
        mask_ratio: float = 0.75,
        weights: LossWeights | None = None,
        terms: LossConfig | None = None,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher.become_teacher()
        teacher.freeze(self.teacher)
        self._pairs = teacher.pair_parameters(self.student, self.teacher)
        self._places, self._momentum = places, momentum
        self._seed, self._mask_ratio = seed, mask_ratio
        self._weights, self._terms = weights or LossWeights(), terms or LossConfig()

    def forward_features(self, batch: ViewBatch, *, return_diagnostics: bool = False, targets: bool = True) -> Latents:
        """Run both networks: the student on masked views, the teacher, where a term asks for it, on whole ones."""
        images, valid = batch.views.flatten(0, 1), batch.valid.flatten(0, 1)
        mask = rng.block_masks(batch, self._seed, self.student.backbone.block, self._mask_ratio)
        rebuilds, compares = self._weights.reconstruction > 0, self._weights.consistency > 0 or return_diagnostics
        rng.sample_drop_path(self.student.backbone, batch, self._seed, self.training)
        networks = [self.student.features(images, valid, mask, decode=rebuilds)]
        made = {"mask": mask.hidden, "pooled": networks[0].pooled}
        if rebuilds:
            made["image"] = self.student.backbone.to_image(networks[0].decoded)
        if targets and (compares or self._weights.contrastive > 0):
            with torch.no_grad():
                networks.append(self.teacher.features(images, valid))
            made["teacher_pooled"] = networks[1].pooled
        if return_diagnostics:
            made["shown"] = _most_telling(networks[-1].dense).detach()
        latents = {name: value.unflatten(0, batch.count) for name, value in made.items()}
        if compares:
            dense, latents["share"] = self._places.gather(batch, [one.dense for one in networks])
            latents |= dict(zip(("dense", "teacher_dense"), dense, strict=False))
        return latents

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:
        """Return the weighted sum of reconstruction, consistency and contrast."""
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        pictures: dict[str, Tensor] = {}
        if "image" in latents:
            hidden = masks.to_voxels(latents["mask"].flatten(0, 1), batch.size, self.student.backbone.block)
            terms["reconstruction"] = self._reconstruction(batch, latents["image"].flatten(0, 1), hidden)
            pictures = (
                {"reconstruction": latents["image"].detach().flatten(0, 1), "mask": hidden}
                if return_diagnostics
                else {}
            )
        if "dense" in latents:
            terms["consistency"], logs["cosine"], features = self._consistency(batch, latents, return_diagnostics)
        if self._weights.contrastive > 0:
            contrast = self._contrast(batch, latents)
            terms["contrastive"], logs["contrast_accuracy"] = contrast.loss, contrast.accuracy
        weighted = [getattr(self._weights, name) * term for name, term in terms.items() if getattr(self._weights, name)]
        loss = torch.stack(weighted).sum()
        if return_diagnostics:
            pictures["features"] = latents["shown"].flatten(0, 1)
        logs = {**{name: term.detach() for name, term in terms.items()}, **logs}
        return StepResult(loss, {"loss": loss.detach(), **logs}, features, pictures)

    def after_update(self, step: int, made: Tensor | None = None) -> None:
        """Move the teacher towards the student."""
        teacher.move_towards(*self._pairs, self._momentum(step), made)

    def encoder(self) -> Backbone:
        """Return the student's backbone."""
        return self.student.backbone

    def _reconstruction(self, batch: ViewBatch, image: Tensor, hidden: Tensor) -> Tensor:
        """Compare the decoder's image with the views before noise and blur, over the voxels that count."""
        valid, target = batch.valid.flatten(0, 1), batch.targets.flatten(0, 1)
        counts = (hidden & valid) if self._mask_ratio > 0 else valid
        if self._terms.reconstruction == "mse":
            return masked_mse(image, target, counts)
        return masked_huber(image, target, counts, self._terms.huber_delta)

    def _consistency(
        self, batch: ViewBatch, latents: Latents, return_diagnostics: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compare student and teacher at the same places, each view's student with the other view's teacher."""
        kept, share = [latents["dense"], latents["teacher_dense"]], latents["share"]
        student, target = self.student.dense_head(), self.teacher.dense_head()
        (prediction,), weight = self._places.read(batch, kept[:1], share, [student])
        with torch.no_grad():
            # The teacher's features once more without a head: the health panel looks at the encoder itself.
            heads_of = [target, None] if return_diagnostics else [target]
            seen, _ = self._places.read(batch, kept[1:] * len(heads_of), share, heads_of)
        aim, both = seen[0].flip(0), weight.repeat(2, 1)
        loss = self._compare(prediction.flatten(0, 1), aim.flatten(0, 1), both)
        distance = loss.detach()
        if self._terms.consistency != "cosine":
            with torch.no_grad():
                distance = cosine_consistency(prediction.flatten(0, 1), aim.flatten(0, 1), both)
        features = {}
        if return_diagnostics:
            rows = weight.flatten() > 0
            features = {
                "encoder": seen[1][0].detach().flatten(0, 1)[rows],
                "projected": aim[0].detach().flatten(0, 1)[rows],
                "pooled": latents["teacher_pooled"].detach().flatten(0, 1),
            }
        return loss, 1 - distance / 2, features

    def _compare(self, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the consistency term of (2B, P, C) vectors at the same places."""
        if self._terms.consistency == "gram":
            return gram_consistency(prediction, target, weight)
        if self._terms.consistency == "nt_xent":
            return dense_nt_xent(prediction, target, weight, self._terms.temperature, self._terms.over_batch)
        return cosine_consistency(prediction, target, weight)

    def _contrast(self, batch: ViewBatch, latents: Latents) -> Contrast:
        """Contrast whole images, student against teacher."""
        mine = _embedded(latents["pooled"], self.student.pooled_head())
        with torch.no_grad():
            theirs = _embedded(latents["teacher_pooled"], self.teacher.pooled_head())
        return global_nt_xent(mine, theirs, batch.subject_id, self._terms.temperature)


def _embedded(pooled: Tensor, head: Head | None) -> Tensor:
    """Pass pooled features (2, B, C) through a head."""
    return at_least_float32(pooled) if head is None else embed(pooled, head)


def _most_telling(maps: list[Tensor]) -> Tensor:
    """Return the one map that says most to the eye: the one whose own grid is the common one, unmixed."""
    grid = common_grid([grid_of(one) for one in maps])
    return next((one for one in maps if grid_of(one) == grid), maps[-1])


USED_SETTINGS = PAIRS | used_settings("geometry", "masking", "heads", "objectives", "teacher")


def requirements(recipe: Recipe) -> MethodRequirements:
    """Ask for pairs of views, of several subjects where images are contrasted."""
    terms = recipe.objectives
    contrasts = terms.contrastive_weight > 0
    return MethodRequirements(
        draw=sample_latentcampus if recipe.geometry == "latentcampus" else sample_pair,
        needs_multiple_subjects="add some, or set objectives.contrastive_weight=0." if contrasts else "",
        aligned=True,
        images=2.0,
        uses_decoder=terms.reconstruction_weight > 0,
        drops_tokens=True,
        repeats=recipe.geometry == "exact",
        has_unused_parameters=min(terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight) == 0,
    )


def build(recipe: Recipe) -> ConsistentViewAlignment:
    """Build the method that a recipe describes.

    Raises:
        UserError: no negatives, a view size that the network cannot take, or views that released geometry cannot align.
    """
    _check(recipe)
    terms, norm = recipe.objectives, norm_for(recipe, 2 * recipe.batch)
    student = ProjectionBranch(
        build_for(recipe, masked=True),
        terms.dense,
        recipe.heads.projector,
        recipe.heads.width,
        recipe.heads.predictor_width,
        norm,
    )
    return ConsistentViewAlignment(
        student,
        DenseAlignment(terms.order, terms.cells, terms.samples, recipe.geometry),
        teacher.Momentum(recipe.teacher.momentum, recipe.teacher.final_momentum, recipe.steps),
        seed=recipe.seed,
        mask_ratio=recipe.masking.ratio,
        weights=LossWeights(terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight),
        terms=LossConfig(
            terms.reconstruction,
            terms.consistency,
            terms.negatives == "batch",
            terms.temperature,
            terms.huber_delta,
        ),
    )


def _check(recipe: Recipe) -> None:
    if recipe.geometry == "latentcampus" and recipe.views.independent:
        raise UserError(
            "geometry=latentcampus cannot align views that are turned independently, as the released code cannot; "
            "set views.independent=false, or geometry=exact."
        )
    if recipe.objectives.contrastive_weight > 0 and recipe.batch < 2:
        raise UserError(
            f"batch = {recipe.batch} leaves the contrastive term without negatives; set batch to at least 2, "
            "or objectives.contrastive_weight=0."
        )
