"""Consistent View Alignment (Vaish et al., arXiv:2509.13846): masked reconstruction, aligned features, contrast.

The student encodes masked views, the teacher full ones. Features of both are read at the same positions of the volume
and compared across networks and views; pooled features are contrasted with those of other subjects.
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
from viewalign.methods.branch import Branch, DenseAlignment, Head
from viewalign.methods.requirements import PAIRS, build_for, check_masks, norm_for, used_settings
from viewalign.networks import masking
from viewalign.networks.backbone import Backbone
from viewalign.networks.heads import embed
from viewalign.networks.teacher import MomentumSchedule, pair_parameters, update_ema
from viewalign.utils.precision import at_least_float32
from viewalign.utils.shapes import spatial_size
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import common_grid
from viewalign.views.latentcampus import sample_latentcampus
from viewalign.views.sampling import sample_pair

USED_SETTINGS = PAIRS | used_settings("geometry", "masking", "heads", "objectives", "teacher")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the three terms; a term of weight 0 is not computed."""

    reconstruction: float = 5.0
    consistency: float = 1.0
    contrastive: float = 0.1


@dataclass(frozen=True)
class LossConfig:
    """Variants of the terms; `over_batch` and `temperature` are those of NT-Xent, see `ObjectiveSettings`."""

    reconstruction: Literal["huber", "mse"] = "huber"
    consistency: Literal["cosine", "nt_xent", "gram"] = "cosine"
    over_batch: bool = False
    temperature: float = 0.5
    huber_delta: float = 1.0


class ConsistentViewAlignment(Method):
    """CVA with any backbone.

    Args:
        student: the branch to train; the teacher is initialised as its copy.
        alignment: how dense features are read at shared positions.
        momentum: of the teacher, by optimizer step.
        seed: masks and stochastic depth derive from (seed, sample, view).
        mask_ratio: fraction of blocks that are masked for the student.
        whole: fraction of views of which no block is masked.
        weights: of the three terms.
        terms: their variants.
    """

    def __init__(
        self,
        student: Branch,
        alignment: DenseAlignment,
        momentum: MomentumSchedule,
        *,
        seed: int = 0,
        mask_ratio: float = 0.75,
        whole: float = 0.0,
        weights: LossWeights | None = None,
        terms: LossConfig | None = None,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher.become_teacher()
        self._pairs = pair_parameters(self.student, self.teacher)
        self._alignment, self._momentum = alignment, momentum
        self._seed, self._mask_ratio, self._whole = seed, mask_ratio, whole
        self._weights, self._terms = weights or LossWeights(), terms or LossConfig()

    def forward_features(self, batch: ViewBatch, *, return_diagnostics: bool = False, targets: bool = True) -> Latents:
        """Run the student on masked views, and the teacher on full ones if a term needs it."""
        images, valid = batch.views.flatten(0, 1), batch.valid.flatten(0, 1)
        mask = rng.block_masks(batch, self._seed, self.student.backbone.block, self._mask_ratio, self._whole)
        reconstruct, compare = self._weights.reconstruction > 0, self._weights.consistency > 0 or return_diagnostics
        rng.sample_drop_path(self.student.backbone, batch, self._seed, self.training)
        networks = [self.student.features(images, valid, mask, decode=reconstruct)]
        outputs = {"mask": mask.hidden, "pooled": networks[0].pooled}
        if reconstruct:
            outputs["image"] = self.student.backbone.to_image(networks[0].decoded)
        if targets and (compare or self._weights.contrastive > 0):
            with torch.no_grad():
                networks.append(self.teacher.features(images, valid))
            outputs["teacher_pooled"] = networks[1].pooled
        if return_diagnostics:
            outputs["shown"] = _map_to_show(networks[-1].dense).detach()
        latents = {name: value.unflatten(0, batch.count) for name, value in outputs.items()}
        if compare:
            dense, latents["weight"] = self._alignment.gather(batch, [network.dense for network in networks])
            latents |= dict(zip(("dense", "teacher_dense"), dense, strict=False))
        return latents

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:
        """Return the weighted sum of reconstruction, consistency and contrast."""
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        pictures: dict[str, Tensor] = {}
        if "image" in latents:
            image = latents["image"].flatten(0, 1)
            hidden = masking.to_voxels(latents["mask"].flatten(0, 1), batch.size, self.student.backbone.block)
            terms["reconstruction"] = self._reconstruction(batch, image, hidden)
            pictures = {"reconstruction": image.detach(), "mask": hidden}
        if "dense" in latents:
            terms["consistency"], logs["cosine"], features = self._consistency(batch, latents, return_diagnostics)
        if self._weights.contrastive > 0:
            contrast = self._contrast(batch, latents)
            terms["contrastive"], logs["contrast_accuracy"] = contrast.loss, contrast.accuracy
        weights = vars(self._weights)
        loss = torch.stack([weights[name] * term for name, term in terms.items() if weights[name]]).sum()
        named = {name if weights[name] else f"{name}_not_in_loss": term.detach() for name, term in terms.items()}
        logs = {"loss": loss.detach(), **named, **logs}
        if not return_diagnostics:
            return StepResult(loss, logs)
        return StepResult(loss, logs, features, {**pictures, "features": latents["shown"].flatten(0, 1)})

    def after_update(self, step: int, made: Tensor | None = None) -> None:
        """Update the teacher."""
        update_ema(*self._pairs, self._momentum(step), made)

    def encoder(self) -> Backbone:
        """Return the student's backbone."""
        return self.student.backbone

    def _reconstruction(self, batch: ViewBatch, image: Tensor, hidden: Tensor) -> Tensor:
        """Compare with the views before noise and blur, over the masked valid voxels, or all if none is masked."""
        valid, target = batch.valid.flatten(0, 1), batch.targets.flatten(0, 1)
        whole = ~hidden.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        counts = (hidden | whole) & valid
        if self._terms.reconstruction == "mse":
            return masked_mse(image, target, counts)
        return masked_huber(image, target, counts, self._terms.huber_delta)

    def _consistency(
        self, batch: ViewBatch, latents: Latents, return_diagnostics: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compare each view's student with the other view's teacher; returns loss, mean cosine and features."""
        student, teacher, weight = latents["dense"], latents["teacher_dense"], latents["weight"]
        (prediction,), row_weight = self._alignment.read(batch, [student], weight, [self.student.dense_head()])
        with torch.no_grad():
            # For health figures the teacher's features are also read without a head.
            heads: list[Head | None] = [self.teacher.dense_head(), *([None] if return_diagnostics else [])]
            read, _ = self._alignment.read(batch, [teacher] * len(heads), weight, heads)
        target, both = read[0].flip(0).flatten(0, 1), row_weight.repeat(2, 1)
        prediction = prediction.flatten(0, 1)
        loss = self._compare(prediction, target, both)
        distance = loss.detach()
        if self._terms.consistency != "cosine":
            with torch.no_grad():
                distance = cosine_consistency(prediction, target, both)
        features = {}
        if return_diagnostics:
            used = row_weight.flatten() > 0
            features = {
                "encoder": read[1][0].detach().flatten(0, 1)[used],
                "projected": read[0][1].detach().flatten(0, 1)[used],
                "pooled": latents["teacher_pooled"].detach().flatten(0, 1),
            }
        return loss, 1 - distance / 2, features

    def _compare(self, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the consistency term of corresponding vectors (2B, P, C)."""
        if self._terms.consistency == "gram":
            return gram_consistency(prediction, target, weight)
        if self._terms.consistency == "nt_xent":
            return dense_nt_xent(prediction, target, weight, self._terms.temperature, self._terms.over_batch)
        return cosine_consistency(prediction, target, weight)

    def _contrast(self, batch: ViewBatch, latents: Latents) -> Contrast:
        """Contrast pooled features, student against teacher."""
        student = _embed(latents["pooled"], self.student.pooled_head())
        with torch.no_grad():
            teacher = _embed(latents["teacher_pooled"], self.teacher.pooled_head())
        return global_nt_xent(student, teacher, batch.subject_id, self._terms.temperature)


def _embed(pooled: Tensor, head: Head | None) -> Tensor:
    return at_least_float32(pooled) if head is None else embed(pooled, head)


def _map_to_show(maps: list[Tensor]) -> Tensor:
    """Return the map that has the common grid, or the coarsest one."""
    grid = common_grid([spatial_size(features) for features in maps])
    return next((features for features in maps if spatial_size(features) == grid), maps[-1])


def requirements(recipe: Recipe) -> MethodRequirements:
    """Return the requirements: pairs of views, of several subjects if images are contrasted."""
    terms = recipe.objectives
    advice = "add some, or set objectives.contrastive_weight=0." if terms.contrastive_weight > 0 else ""
    return MethodRequirements(
        sampler=sample_latentcampus if recipe.geometry == "latentcampus" else sample_pair,
        needs_multiple_subjects=advice,
        distinct_subjects=True,  # without the contrast too, so that runs with and without it see the same volumes
        aligned=True,
        images=2.0,
        uses_decoder=terms.reconstruction_weight > 0,
        drops_tokens=True,
        deterministic=recipe.geometry == "exact",
        has_unused_parameters=min(terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight) == 0,
    )


def build(recipe: Recipe) -> ConsistentViewAlignment:
    """Build the method of a recipe.

    Raises:
        UserError: a batch without negatives, views without a masked block, or views that the released geometry cannot
            align.
    """
    _check(recipe)
    terms, heads, masks = recipe.objectives, recipe.heads, recipe.masking
    norm, backbone = norm_for(recipe, 2 * recipe.batch), build_for(recipe, masked=True)
    if masks.ratio > 0 and terms.reconstruction_weight > 0:
        check_masks(recipe, backbone.block, "masking.ratio=0 to restore whole views")
    over_batch = terms.negatives == "batch"
    return ConsistentViewAlignment(
        Branch(backbone, terms.dense, heads.projector, heads.width, heads.predictor_width, norm),
        DenseAlignment(terms.order, terms.cells, terms.samples, recipe.geometry),
        MomentumSchedule(recipe.teacher.momentum, recipe.teacher.final_momentum, recipe.steps),
        seed=recipe.seed,
        mask_ratio=masks.ratio,
        whole=masks.whole,
        weights=LossWeights(terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight),
        terms=LossConfig(terms.reconstruction, terms.consistency, over_batch, terms.temperature, terms.huber_delta),
    )


def _check(recipe: Recipe) -> None:
    terms = recipe.objectives
    if max(terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight) == 0:
        raise UserError(
            "All weights of `objectives` are 0, so that there is no loss; set objectives.reconstruction_weight, "
            "consistency_weight or contrastive_weight above 0."
        )
    if recipe.geometry == "latentcampus" and recipe.views.independent:
        raise UserError(
            "geometry=latentcampus cannot align views that are rotated independently, as the released code cannot; "
            "set views.independent=false, or geometry=exact."
        )
    if recipe.objectives.contrastive_weight > 0 and recipe.batch < 2:
        raise UserError(
            f"batch = {recipe.batch} leaves the contrastive term without negatives; set batch to at least 2, "
            "or objectives.contrastive_weight=0."
        )
