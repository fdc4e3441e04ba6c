"""Consistent View Alignment (Vaish et al., arXiv:2509.13846): masked reconstruction, aligned features, contrast.

The student sees masked views, the teacher whole ones. Features of either view are read at the same places of the
volume and compared across the two networks; embeddings of whole images are contrasted with those of other subjects.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.base import Method, StepResult
from viewalign.networks import heads, masks, teacher
from viewalign.networks.backbone import Backbone, Encoded
from viewalign.networks.registry import build_backbone
from viewalign.objectives.consistency import cosine_consistency, gram_consistency
from viewalign.objectives.contrastive import Contrast, dense_nt_xent, global_nt_xent
from viewalign.objectives.reconstruction import masked_huber, masked_mse
from viewalign.randomness import generator_of
from viewalign.views.alignment import Correspondence, correspond, valid_share
from viewalign.views.batch import ViewBatch
from viewalign.views.grids import common_grid, resize
from viewalign.views.released import ReleasedCorrespondence, correspond_as_released, gather_stages

Size = tuple[int, int, int]
Places = Correspondence | ReleasedCorrespondence


@dataclass(frozen=True)
class Weights:
    """Weights of the three terms; a term of weight 0 is not computed."""

    reconstruction: float = 5.0
    consistency: float = 1.0
    contrastive: float = 0.1


@dataclass(frozen=True)
class Features:
    """One network's features of a batch of views (N = 2·B images, first views first).

    Attributes:
        encoded: the encoder's output.
        maps: dense maps, finest first.
        pooled: (N, C) one vector an image.
    """

    encoded: Encoded
    maps: list[Tensor]
    pooled: Tensor


class Branch(nn.Module):
    """A network with its heads; the teacher's has no decoder and no predictor."""

    def __init__(self, backbone: Backbone, projector: heads.MLP, predictor: heads.MLP | None) -> None:
        super().__init__()
        self.backbone, self.projector, self.predictor = backbone, projector, predictor

    def features(self, images: Tensor, valid: Tensor, mask: Tensor | None = None) -> Features:
        """Encode images (N, C, D, H, W), of which `valid` (N, 1, D, H, W) says what counts."""
        encoded = self.backbone.encode(images, mask)
        maps = self.backbone.dense(encoded)
        shares = [valid_share(valid, (m.shape[2], m.shape[3], m.shape[4])) for m in maps]
        return Features(encoded, maps, self.backbone.pool(maps, shares))

    def project(self, rows: Tensor, share: Tensor) -> Tensor:
        """Pass rows (N, C) of weight (N,) through the heads."""
        out: Tensor = self.projector(rows, share)
        return out if self.predictor is None else self.predictor(out, share)


class ConsistentViewAlignment(Method):
    """The whole of CVA around any backbone.

    Args:
        backbone: the student's network.
        seed: masks derive from (seed, sample, view).
        mask_ratio: share of blocks the student does not see.
        weights: of the three terms.
        order: "project_first" projects every cell of a common grid and then aligns, as published; "align_first" aligns
            each stage and projects the aligned vectors alone, several times fewer.
        head_width, predictor_width, norm: the heads.
        reconstruction, consistency: which form the first two terms take.
        over_batch: whether places of other pairs are negatives of dense NT-Xent too.
        cells, samples: the lattice.
        temperature: of NT-Xent.
        huber_delta: of the reconstruction.
        momentum: of the teacher.
        geometry: "latentcampus" reads views drawn by `draw_released` at the places that the released code compares.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        seed: int = 0,
        mask_ratio: float = 0.75,
        weights: Weights | None = None,
        order: Literal["project_first", "align_first"] = "project_first",
        head_width: int = 2048,
        predictor_width: int = 512,
        norm: heads.Norm = "batch",
        reconstruction: Literal["huber", "mse"] = "huber",
        consistency: Literal["cosine", "nt_xent", "gram"] = "cosine",
        over_batch: bool = False,
        cells: int = 7,
        samples: int = 2,
        temperature: float = 0.5,
        huber_delta: float = 1.0,
        momentum: float = 0.995,
        geometry: Literal["exact", "latentcampus"] = "exact",
    ) -> None:
        super().__init__()
        projector = heads.projector(sum(backbone.stage_channels), head_width, norm)
        self.student = Branch(backbone, projector, heads.predictor(head_width, predictor_width, norm))
        self.teacher = Branch(copy.deepcopy(backbone), copy.deepcopy(projector), None)
        self.teacher.backbone.drop_decoder()
        teacher.freeze(self.teacher)
        self._pairs = teacher.pair_parameters(self.student, self.teacher)
        self._seed, self._mask_ratio, self._momentum = seed, mask_ratio, momentum
        self._reconstruction_kind, self._consistency_kind, self._over_batch = reconstruction, consistency, over_batch
        self._weights, self._order = weights or Weights(), order
        self._cells, self._samples, self._geometry = cells, samples, geometry
        self._temperature, self._huber_delta = temperature, huber_delta

    def step(self, batch: ViewBatch, *, examine: bool = False) -> StepResult:
        """Return the weighted sum of reconstruction, consistency and contrast."""
        images, valid = batch.views.flatten(0, 1), batch.valid.flatten(0, 1)
        mask = self._draw_masks(batch)
        student = self.student.features(images, valid, mask)
        with torch.no_grad():
            target = self.teacher.features(images, valid)
        terms: dict[str, Tensor] = {}
        logs: dict[str, Tensor] = {}
        pictures: dict[str, Tensor] = {}
        if self._weights.reconstruction > 0:
            hidden = masks.to_voxels(mask, batch.size, self.student.backbone.block)
            counts = (hidden & valid) if self._mask_ratio > 0 else valid
            image, terms["reconstruction"] = self._rebuild(student, batch, counts)
            pictures = {"reconstruction": image.detach(), "mask": hidden} if examine else {}
        features: dict[str, Tensor] = {}
        if self._weights.consistency > 0 or examine:
            terms["consistency"], logs["cosine"], features = self._consistency(batch, student, target, examine)
        if self._weights.contrastive > 0:
            contrast = self._contrast(batch, student, target)
            terms["contrastive"], logs["contrast_accuracy"] = contrast.loss, contrast.accuracy
        weighted = [getattr(self._weights, name) * term for name, term in terms.items() if getattr(self._weights, name)]
        loss = torch.stack(weighted).sum()
        if examine:
            pictures["features"] = self._shown(target.maps).detach()
        logs = {**{name: term.detach() for name, term in terms.items()}, **logs}
        return StepResult(loss, {"loss": loss.detach(), **logs}, features, pictures)

    def after_update(self, step: int) -> None:  # noqa: ARG002
        """Move the teacher towards the student."""
        teacher.move_towards(*self._pairs, self._momentum)

    def encoder(self) -> Backbone:
        """Return the student's backbone."""
        return self.student.backbone

    def _draw_masks(self, batch: ViewBatch) -> Tensor:
        """Draw every view's mask (N, blocks) from (seed, sample, view)."""
        grid = masks.block_grid(batch.size, self.student.backbone.block)
        blocks = grid[0] * grid[1] * grid[2]
        views, _ = batch.count
        rows = [
            masks.draw_mask(generator_of(self._seed, sample, view, "mask"), blocks, self._mask_ratio)
            for view in range(views)
            for sample in batch.sample.tolist()
        ]
        return torch.from_numpy(np.stack(rows)).to(batch.views.device)

    def _consistency(
        self, batch: ViewBatch, student: Features, target: Features, examine: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compare student and teacher at the same places, each view's student with the other view's teacher."""
        grids = self.student.backbone.grids(batch.size)
        places = self._places(batch, grids if self._order == "align_first" else [common_grid(grids)])
        prediction = self._aligned(self.student, student.maps, batch, places)
        with torch.no_grad():
            aim = self._aligned(self.teacher, target.maps, batch, places).flip(0)
        weight = places.weight.expand(2, -1, -1).flatten(0, 1)
        loss = self._compare(prediction.flatten(0, 1), aim.flatten(0, 1), weight)
        distance = loss.detach()
        if self._consistency_kind != "cosine":
            with torch.no_grad():
                distance = cosine_consistency(prediction.flatten(0, 1), aim.flatten(0, 1), weight)
        features = {}
        if examine:
            rows = places.weight.flatten() > 0
            features = {
                "encoder": self._raw(target.maps, batch)[0].flatten(0, 1)[rows],
                "projected": aim[0].flatten(0, 1)[rows],
                "pooled": target.pooled,
            }
        return loss, 1 - distance / 2, features

    def _compare(self, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the consistency term of (2B, P, C) vectors at the same places."""
        if self._consistency_kind == "gram":
            return gram_consistency(prediction, target, weight)
        if self._consistency_kind == "nt_xent":
            return dense_nt_xent(prediction, target, weight, self._temperature, self._over_batch)
        return cosine_consistency(prediction, target, weight)

    def _rebuild(self, student: Features, batch: ViewBatch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's image and its distance from the target over the voxels that count."""
        image = self.student.backbone.reconstruct(student.encoded)
        target = batch.targets.flatten(0, 1)
        if self._reconstruction_kind == "mse":
            return image, masked_mse(image, target, counts)
        return image, masked_huber(image, target, counts, self._huber_delta)

    def _places(self, batch: ViewBatch, grids: list[Size]) -> Places:
        """Find the places that the two views share, to be read from features of these grids."""
        if self._geometry == "latentcampus":
            cells = (self._cells, self._cells, self._cells)
            return correspond_as_released(batch.claimed_boxes, cells, self._samples, batch.valid.device)
        return correspond(
            batch.to_volume[0], batch.to_volume[1], batch.size, grids, batch.valid, self._cells, self._samples
        )

    def _joined(self, maps: list[Tensor]) -> Tensor:
        """Bring dense maps to one grid and join their channels, (N, ΣC, d, h, w)."""
        if self._geometry == "latentcampus":
            return gather_stages(maps)
        grid = common_grid([_grid_of(m) for m in maps])
        return torch.cat([resize(m, grid) for m in maps], dim=1)

    def _shown(self, maps: list[Tensor]) -> Tensor:
        """Return the one map that says most to the eye: the stage whose own grid is the common one, unmixed."""
        grid = common_grid([_grid_of(m) for m in maps])
        return next((m for m in maps if _grid_of(m) == grid), maps[-1])

    def _aligned(self, branch: Branch, maps: list[Tensor], batch: ViewBatch, places: Places) -> Tensor:
        """Return head outputs at the shared places, (2, B, cells, C)."""
        if self._order == "align_first":
            rows = places.read(maps)
            share = places.weight.expand(rows.shape[0], -1, -1)
            return branch.project(rows.flatten(0, 2), share.flatten()).view(*rows.shape[:3], -1)
        joined = self._joined(maps)
        grid, cells = _grid_of(joined), joined.flatten(2).transpose(1, 2)
        share = (valid_share(batch.valid.flatten(0, 1), grid) >= 0.5).flatten(1)
        out = branch.project(cells.flatten(0, 1), share.flatten()).view(*cells.shape[:2], -1)
        return places.read([out.transpose(1, 2).unflatten(2, grid)])

    def _raw(self, maps: list[Tensor], batch: ViewBatch) -> Tensor:
        """Return the teacher's backbone features at the shared places, before any head."""
        joined = self._joined(maps)
        return self._places(batch, [_grid_of(joined)]).read([joined])

    def _contrast(self, batch: ViewBatch, student: Features, target: Features) -> Contrast:
        """Contrast whole images, student against teacher."""
        views, images = batch.count
        ones = student.pooled.new_ones(student.pooled.shape[0])
        mine = self.student.project(student.pooled, ones).view(views, images, -1)
        with torch.no_grad():
            theirs = self.teacher.project(target.pooled, ones).view(views, images, -1)
        return global_nt_xent(mine, theirs, batch.subject_id, self._temperature)


def _grid_of(features: Tensor) -> Size:
    return (features.shape[2], features.shape[3], features.shape[4])


def build(recipe: Recipe) -> ConsistentViewAlignment:
    """Build the method that a recipe describes.

    Raises:
        UserError: no negatives, a view size that the network cannot take, or views that released geometry cannot align.
    """
    terms = recipe.objectives
    if recipe.geometry == "latentcampus" and recipe.views.independent:
        raise UserError(
            "geometry=latentcampus cannot align views that are turned independently, as the released code cannot; "
            "set views.independent=false, or geometry=exact."
        )
    if terms.contrastive_weight > 0 and recipe.batch < 2:
        raise UserError(
            f"batch = {recipe.batch} leaves the contrastive term without negatives; set batch to at least 2, "
            "or objectives.contrastive_weight=0."
        )
    network = recipe.network
    backbone = build_backbone(
        network.name, recipe.views.size, network.channels, recipe.masking.block, network.drop_path
    )
    norm = recipe.heads.norm
    if norm == "auto":
        # Below eight pooled vectors (two views of each image) batch statistics say more about chance than images.
        norm = "batch" if 2 * recipe.batch >= 8 else "layer"
    return ConsistentViewAlignment(
        backbone,
        seed=recipe.seed,
        mask_ratio=recipe.masking.ratio,
        weights=Weights(terms.reconstruction_weight, terms.consistency_weight, terms.contrastive_weight),
        order=terms.order,
        head_width=recipe.heads.width,
        predictor_width=recipe.heads.predictor_width,
        norm=norm,
        reconstruction=terms.reconstruction,
        consistency=terms.consistency,
        over_batch=terms.negatives == "batch",
        cells=terms.cells,
        samples=terms.samples,
        temperature=terms.temperature,
        huber_delta=terms.huber_delta,
        momentum=recipe.teacher.momentum,
        geometry=recipe.geometry,
    )
