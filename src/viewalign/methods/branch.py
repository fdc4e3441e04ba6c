"""The student's or teacher's branch of CVA: a backbone with heads, and its dense features at shared positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.networks.masking import BlockMask
from viewalign.utils.pooling import valid_fraction
from viewalign.utils.precision import at_least_float32
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views.alignment import Correspondence, find_correspondences
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import common_grid, resize
from viewalign.views.latentcampus import LatentCampusCorrespondence, find_latentcampus_correspondences, gather_stages

Head = Callable[[Tensor, Tensor], Tensor]
"""Maps rows (N, C) with weights (N,)."""


@dataclass(frozen=True)
class BranchFeatures:
    """Features of a batch of views (N = V·B images, first views first).

    Attributes:
        dense: maps (N, C, d, h, w) that are compared position by position, finest first.
        pooled: (N, C) one vector per image.
        decoded: maps of the decoder; empty if it did not run.
    """

    dense: list[Tensor]
    pooled: Tensor
    decoded: list[Tensor]


class Branch(nn.Module):
    """A backbone with projectors and predictors.

    Dense and pooled features of an encoder share projector and predictor, as published; dense features of a decoder
    have separate heads.

    Args:
        backbone: the network.
        source: whether the dense features are maps of the encoder or of the decoder.
        projected: features that pass through the heads: dense and pooled, only pooled, or none.
        width, predictor_width, norm: of the heads.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: Literal["encoder", "decoder"] = "encoder",
        projected: Literal["both", "pooled", "none"] = "both",
        width: int = 2048,
        predictor_width: int = 512,
        norm: heads.Norm = "batch",
    ) -> None:
        super().__init__()
        self.backbone, self.source, self.projected = backbone, source, projected
        self.projector: heads.MLP | None = None
        self.predictor: heads.MLP | None = None
        self.dense_projector: heads.MLP | None = None
        self.dense_predictor: heads.MLP | None = None
        if projected != "none":
            self.projector = heads.projector(backbone.pooled_channels, width, norm)
            self.predictor = heads.predictor(width, predictor_width, norm)
        if projected == "both" and source == "decoder":
            self.dense_projector = heads.projector(sum(backbone.decoder_channels), width, norm)
            self.dense_predictor = heads.predictor(width, predictor_width, norm)

    def become_teacher(self) -> None:
        """Freeze all parameters, and remove predictors and a decoder whose maps are not used."""
        self.predictor = self.dense_predictor = None
        if self.source == "encoder":
            self.backbone.drop_decoder()
        self.requires_grad_(False)

    def features(
        self, images: Tensor, valid: Tensor, mask: BlockMask | None = None, decode: bool = False
    ) -> BranchFeatures:
        """Encode images (N, C, D, H, W) with valid voxels (N, 1, D, H, W), and decode them if `decode`."""
        encoded = self.backbone.encode(images, mask)
        maps = self.backbone.dense(encoded)
        # Before pooling: the order of operations sets the order in which gradients are summed, and so their rounding.
        decoded = self.backbone.decode(encoded) if decode or self.source == "decoder" else []
        pooled = self.backbone.pool(maps, valid)
        return BranchFeatures(decoded if self.source == "decoder" else maps, pooled, decoded)

    def dense_head(self) -> Head | None:
        """Return the head of dense features, or None if there is none."""
        if self.projected != "both":
            return None
        if self.source == "decoder":
            return _chain(self.dense_projector, self.dense_predictor)
        return self.pooled_head()

    def pooled_head(self) -> Head | None:
        """Return the head of pooled features, or None if there is none."""
        return _chain(self.projector, self.predictor)


def _chain(projector: heads.MLP | None, predictor: heads.MLP | None) -> Head | None:
    if projector is None or predictor is None:
        return projector
    return partial(_apply_both, projector, predictor)


def _apply_both(projector: heads.MLP, predictor: heads.MLP, rows: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = predictor(projector(rows, weight), weight)
    return out


@dataclass(frozen=True)
class DenseAlignment:
    """How dense features of a pair of views are read at shared positions and pass a head.

    Attributes:
        order: "project_first" passes every cell of a common grid through the head and then aligns, as published;
            "align_first" aligns each map and passes only the aligned vectors, several times fewer.
        cells: lattice cells per axis, at most.
        samples: points per axis and cell.
        geometry: "latentcampus" reads views from `sample_latentcampus` where the released code reads them.
    """

    order: Literal["project_first", "align_first"]
    cells: Size
    samples: int
    geometry: Literal["exact", "latentcampus"] = "exact"

    def gather(self, batch: ViewBatch, networks: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
        """Reduce each network's maps (2·B, C, d, h, w) to the input of its head.

        Returns:
            For each network (2, B, P, ΣC) aligned vectors (align first) or (2, B, ΣC, d, h, w) on one grid (project
            first), and the weight of each position or cell, (2, B, positions or cells).
        """
        if self.order == "align_first":
            found = self._find(batch, [spatial_size(features) for features in networks[0]])
            return [found.read(maps) for maps in networks], found.weight.expand(2, -1, -1)
        joined = [self._join(maps) for maps in networks]
        weight = (valid_fraction(batch.valid.flatten(0, 1), spatial_size(joined[0])) >= 0.5).flatten(1)
        return [features.unflatten(0, batch.count) for features in joined], weight.unflatten(0, batch.count)

    def read(
        self, batch: ViewBatch, gathered: Sequence[Tensor], weight: Tensor, network_heads: Sequence[Head | None]
    ) -> tuple[list[Tensor], Tensor]:
        """Pass the results of `gather` through heads and read them at the shared positions.

        Returns:
            For each network (2, B, P, C), and the weight (B, P) of each position.
        """
        if self.order == "align_first":
            pairs = zip(gathered, network_heads, strict=True)
            return [_project(rows, weight, head) for rows, head in pairs], weight[0]
        grid = spatial_size(gathered[0])
        found = self._find(batch, [grid])
        out = []
        for features, head in zip(gathered, network_heads, strict=True):
            rows = _project(features.flatten(3).transpose(2, 3), weight, head)
            out.append(found.read([rows.transpose(2, 3).flatten(0, 1).unflatten(2, grid)]))
        return out, found.weight

    def _join(self, maps: Sequence[Tensor]) -> Tensor:
        """Resize maps to one grid and concatenate their channels, (N, ΣC, d, h, w)."""
        if self.geometry == "latentcampus":
            return gather_stages(maps)
        grid = common_grid([spatial_size(features) for features in maps])
        return torch.cat([resize(features, grid) for features in maps], dim=1)

    def _find(self, batch: ViewBatch, grids: list[Size]) -> Correspondence | LatentCampusCorrespondence:
        if self.geometry == "latentcampus":
            return find_latentcampus_correspondences(batch.claimed_boxes, self.cells, self.samples, batch.valid.device)
        a, b = batch.to_volume[0], batch.to_volume[1]
        return find_correspondences(a, b, batch.size, grids, batch.valid, self.cells, self.samples)


def _project(rows: Tensor, weight: Tensor, head: Head | None) -> Tensor:
    """Pass rows (2, B, P, C) of weight (2, B, P) through a head."""
    if head is None:
        return at_least_float32(rows)
    out: Tensor = head(rows.flatten(0, 2), weight.flatten()).unflatten(0, rows.shape[:3])
    return out
