"""The method of `dino` and `dino-cva`: student and teacher with prototypes, and the terms of the loss.

The student sees two global views with masked blocks and several local views, the teacher the global views in full.
From every view the student predicts the teacher's prototypes of the other global views, and at masked positions those
of the same view. With `AlignedTargets` it also predicts, from positions of every view, the teacher's prototypes at the
same position of the volume in other views, which the views' affines give exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from viewalign.losses import PrototypeTargets
from viewalign.losses.distillation import (
    gram_anchoring,
    koleo,
    prototype_figures,
    token_cross_entropy,
    view_cross_entropy,
)
from viewalign.methods import rng
from viewalign.methods.aligned_targets import AlignedTargets, read_cells, valid_cells
from viewalign.methods.base import Latents, Method, StepResult
from viewalign.methods.single_network import encoder_diagnostics, step_result
from viewalign.networks import masking
from viewalign.networks.backbone import Backbone
from viewalign.networks.masking import BlockMask
from viewalign.networks.prototypes import PrototypeHead
from viewalign.networks.teacher import MomentumSchedule, pair_parameters, update_ema
from viewalign.utils.pooling import masked_mean
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import resize

_GRAM_CELLS = 12
"""Cells per axis whose similarities are anchored, at most: their number is squared twice."""


@dataclass(frozen=True)
class TermWeights:
    """Weights of the terms; a term of weight 0 is not computed. `alignment` needs `AlignedTargets`."""

    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    gram: float = 0.0
    alignment: float = 0.0


@dataclass(frozen=True)
class Schedules:
    """What depends on the step, which the numbers of a batch's samples give.

    Attributes:
        batch: global batch size.
        temperature: of the teacher at the first step and after the warm-up.
        warmup: steps of the linear warm-up of the temperature.
        freeze: steps in which the student's prototypes are fixed.
        gram_start, gram_every: first step of Gram anchoring, and steps between its anchors.
    """

    batch: int
    temperature: tuple[float, float] = (0.04, 0.07)
    warmup: int = 0
    freeze: int = 0
    gram_start: int = 0
    gram_every: int = 10_000

    def step(self, batch: ViewBatch) -> int:
        """Return the step of a batch, from 0; validation has the numbers of the first steps, whatever the run's."""
        return int(batch.sample[0]) // self.batch

    def teacher_temperature(self, step: int) -> float:
        """Return the teacher's temperature at a step."""
        first, last = self.temperature
        return last if step >= self.warmup else first + (last - first) * step / self.warmup


class Network(nn.Module):
    """Student or teacher: a backbone with a head for whole views and one for positions.

    Args:
        backbone: the network; its encoder is used.
        head, position_head: of pooled and of dense features.
    """

    def __init__(self, backbone: Backbone, head: PrototypeHead, position_head: PrototypeHead) -> None:
        super().__init__()
        self.backbone, self.head, self.position_head = backbone, head, position_head

    def features(self, views: ViewBatch, mask: BlockMask | None = None) -> tuple[Tensor, Tensor]:
        """Return pooled features (V, B, C) and features (N, C, d, h, w) on the grid of the masked blocks."""
        maps = self.backbone.maps(self.backbone.encode(views.views.flatten(0, 1), mask, drop_tokens=False))
        dense = _join(maps, masking.block_grid(views.size, self.backbone.block))
        return masked_mean(maps, views.valid.flatten(0, 1)).unflatten(0, views.count), dense


class DINO(Method):
    """Student and teacher with prototypes.

    Args:
        student: the network to train; the teacher is initialised as its copy.
        targets: of the teacher's two heads, for whole views and for positions.
        momentum: of the teacher, by optimizer step.
        schedules: see `Schedules`.
        weights: of the terms.
        aligned: positions that are compared between views, if `weights.alignment`.
        mask_ratio: fraction of the blocks of the student's global views that are masked.
        temperature: of the student.
        seed: random numbers of an image derive from (seed, sample, view).
    """

    def __init__(
        self,
        student: Network,
        targets: tuple[PrototypeTargets, PrototypeTargets],
        momentum: MomentumSchedule,
        schedules: Schedules,
        weights: TermWeights,
        aligned: AlignedTargets | None = None,
        *,
        mask_ratio: float = 0.3,
        temperature: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student)
        self.teacher.backbone.drop_decoder()
        self.teacher.requires_grad_(False)
        self.anchor = copy.deepcopy(self.teacher.backbone) if weights.gram > 0 else None
        self.view_targets, self.position_targets = targets
        student.backbone.freeze_unused(fill=weights.ibot > 0)
        student.head.requires_grad_(weights.dino > 0)
        student.position_head.requires_grad_(max(weights.ibot, weights.alignment) > 0)
        self._pairs = pair_parameters(self.student, self.teacher)
        self._momentum, self._schedules, self._weights, self._aligned = momentum, schedules, weights, aligned
        self._mask_ratio, self._temperature, self._seed = mask_ratio, temperature, seed

    def forward_features(self, batch: ViewBatch, *, return_diagnostics: bool = False, targets: bool = True) -> Latents:
        """Run the student on masked global and on local views, and the teacher on global views."""
        assert batch.local is not None, "views are from `sample_multi_crop`"
        mask = rng.block_masks(batch, self._seed, self.student.backbone.block, self._mask_ratio)
        hidden = mask if self._weights.ibot > 0 else None
        networks = [self._run_student(batch, "drop path", hidden)]
        local = self._run_student(batch.local, "drop path of local")
        latents = {"global": networks[0][0], "local": local[0], "hidden": mask.hidden.unflatten(0, batch.count)}
        if targets:
            with torch.no_grad():
                networks.append(self.teacher.features(batch))
                latents["teacher_global"] = networks[1][0]
        names = ("", "teacher_")
        if self._weights.ibot > 0:
            cells = _first(mask.hidden, mask.hidden.shape[1] - mask.kept)
            for name, (_, dense) in zip(names, networks, strict=False):
                latents[f"{name}masked"] = read_cells(dense, cells).unflatten(0, batch.count)
            latents["masked_valid"] = valid_cells(batch, networks[0][1]).gather(1, cells).unflatten(0, batch.count)
        if self._aligned is not None:
            teacher = networks[1][1] if targets else None
            latents |= self._aligned.gather(batch, networks[0][1], local[1], teacher, self._seed)
        if self._weights.gram > 0:
            latents |= self._gram_features(batch, networks[0][1])
        if return_diagnostics:
            latents |= encoder_diagnostics(self.teacher.backbone, batch)
        return latents

    def _run_student(self, views: ViewBatch, purpose: str, mask: BlockMask | None = None) -> tuple[Tensor, Tensor]:
        self.student.backbone.sample_drop_path(rng.generators(views, self._seed, purpose) if self.training else None)
        return self.student.features(views, mask)

    @torch.no_grad()
    def _renew_anchor(self, step: int) -> None:
        """Make the teacher the Gram anchor if it is due, before the step: with parts, before each of them alike."""
        assert self.anchor is not None
        since = step - self._schedules.gram_start
        if self.training and since >= 0 and since % self._schedules.gram_every == 0:
            torch._foreach_copy_(list(self.anchor.parameters()), list(self.teacher.backbone.parameters()))

    def _gram_features(self, batch: ViewBatch, dense: Tensor) -> Latents:
        """Return positions of the student and of the anchor, on a grid of at most `_GRAM_CELLS` per axis."""
        assert self.anchor is not None
        step = self._schedules.step(batch)
        if step < self._schedules.gram_start:
            return {}
        self._renew_anchor(step)
        grid = gram_grid(spatial_size(dense))
        with torch.no_grad():
            maps = self.anchor.maps(self.anchor.encode(batch.views.flatten(0, 1)))
            anchor = resize(_join(maps, spatial_size(dense)), grid)
        rows = {"gram": resize(dense, grid), "anchor_gram": anchor}
        found = {name: value.flatten(2).transpose(1, 2).unflatten(0, batch.count) for name, value in rows.items()}
        return {**found, "gram_valid": valid_cells(batch, anchor).unflatten(0, batch.count)}

    def compute_loss(self, batch: ViewBatch, latents: Latents, *, return_diagnostics: bool = False) -> StepResult:
        """Return the weighted sum of the terms."""
        step = self._schedules.step(batch)
        terms: dict[str, Tensor] = {}
        figures: dict[str, Tensor] = {}
        if self._weights.dino > 0:
            terms["dino"], figures = self._compare_views(batch, latents, step)
        if max(self._weights.ibot, self._weights.alignment) > 0:
            terms |= self._compare_positions(latents, step)
        if self._weights.koleo > 0:
            terms["koleo"] = torch.stack([koleo(rows) for rows in latents["global"]]).mean()
        if "gram" in latents:
            rows = [latents[name].flatten(0, 1) for name in ("gram", "anchor_gram", "gram_valid")]
            terms["gram"] = gram_anchoring(rows[0], rows[1], rows[2])
        loss = torch.stack([getattr(self._weights, name) * term for name, term in terms.items()]).sum()
        pictures: dict[str, Tensor] = {}
        if return_diagnostics and self._weights.ibot > 0:
            hidden = latents["hidden"].flatten(0, 1)
            pictures["mask"] = masking.to_voxels(hidden, batch.size, self.student.backbone.block)
        return step_result(loss, latents, {**terms, **figures}, pictures)

    def _compare_views(self, batch: ViewBatch, latents: Latents, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return DINO's loss over all views, and figures of the targets."""
        assert batch.local is not None
        views = torch.cat([latents["global"], latents["local"]])
        student = self.student.head(views, fixed=step < self._schedules.freeze)
        seen = torch.cat([views.valid.flatten(2).any(2) for views in (batch, batch.local)])
        with torch.no_grad():
            logits = self.teacher.head(latents["teacher_global"])
            temperature = self._schedules.teacher_temperature(step)
            rows = self.view_targets(logits.flatten(0, 1), temperature, seen[:2].flatten().float())
            figures = prototype_figures(rows, seen[:2].flatten().float())
        return view_cross_entropy(student, rows.view_as(logits), self._temperature, seen), figures

    def _compare_positions(self, latents: Latents, step: int) -> dict[str, Tensor]:
        """Return iBOT's loss at masked positions, and that of aligned positions."""
        kinds = {"masked": self._weights.ibot > 0, "aligned": self._aligned is not None}
        names = [name for name, used in kinds.items() if used]
        rows = [latents[f"teacher_{name}"].flatten(0, 1) for name in names]
        weights = [latents[f"{name}_valid"].flatten(0, 1) for name in names]
        with torch.no_grad():
            # One call for all positions: the running mean and Sinkhorn's totals are those of all of them.
            logits = self.teacher.position_head(torch.cat([part.flatten(0, 1) for part in rows]))
            weight = torch.cat([part.flatten() for part in weights]).float()
            every = self.position_targets(logits, self._schedules.teacher_temperature(step), weight)
            parts = every.split([part.shape[0] * part.shape[1] for part in rows])
        targets = {name: part.unflatten(0, row.shape[:2]) for name, part, row in zip(names, parts, rows, strict=True)}
        head = partial(self.student.position_head, fixed=step < self._schedules.freeze)
        terms: dict[str, Tensor] = {}
        if "masked" in targets:
            student = head(latents["masked"].flatten(0, 1))
            terms["ibot"] = token_cross_entropy(student, targets["masked"], weights[0], self._temperature)
        if self._aligned is not None:
            terms["alignment"] = self._aligned.loss(latents, targets["aligned"], head, self._temperature)
        return terms

    def after_update(self, step: int, made: Tensor | None = None) -> None:
        """Update the teacher and the running means of its logits."""
        update_ema(*self._pairs, self._momentum(step), made)
        self.view_targets.update(made)
        self.position_targets.update(made)

    def encoder(self) -> Backbone:
        """Return the student's backbone; `weights=teacher` exports the teacher's."""
        return self.student.backbone


def _join(maps: Sequence[Tensor], grid: Size) -> Tensor:
    """Resize maps to one grid and concatenate their channels, (N, ΣC, d, h, w)."""
    return torch.cat([resize(features, grid) for features in maps], dim=1)


def _first(chosen: Tensor, count: int) -> Tensor:
    """Return the indices (N, count), ascending, of the chosen entries (N, M) bool, of which each row has `count`."""
    return torch.argsort((~chosen).to(torch.uint8), dim=1, stable=True)[:, :count]


def gram_grid(grid: Size) -> Size:
    """Return the finest grid of at most `_GRAM_CELLS` per axis whose cells are whole blocks of a grid's."""
    d, h, w = (max(n for n in range(1, _GRAM_CELLS + 1) if side % n == 0) for side in grid)
    return (d, h, w)
