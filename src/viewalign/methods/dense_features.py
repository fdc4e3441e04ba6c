"""Dense features of two networks at the places that two views share, before or after a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from viewalign.methods.projection_branch import Head
from viewalign.utils.precision import at_least_float32
from viewalign.views.alignment import Correspondence, find_correspondences, valid_share
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import common_grid, resize
from viewalign.views.latentcampus import LatentCampusCorrespondence, find_latentcampus_correspondences, gather_stages

Size = tuple[int, int, int]
Places = Correspondence | LatentCampusCorrespondence


@dataclass(frozen=True)
class DenseAlignment:
    """How dense features of a pair of views are brought to the places both share.

    Attributes:
        order: "project_first" passes every cell of a common grid through the head and then aligns, as published;
            "align_first" aligns each map and passes the aligned vectors alone, several times fewer.
        cells: lattice cells per axis, at most.
        samples: points per axis and cell.
        geometry: "latentcampus" reads views drawn by `draw_released` at the places that the released code compares.
    """

    order: Literal["project_first", "align_first"]
    cells: Size
    samples: int
    geometry: Literal["exact", "latentcampus"] = "exact"

    def gather(self, batch: ViewBatch, networks: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
        """Keep of each network's maps (2·B, C, d, h, w) what its head will need.

        Returns:
            Per network (2, B, P, ΣC) aligned vectors (align first) or (2, B, ΣC, d, h, w) on one grid (project first),
            and how much each place or cell counts, (2, B, places or cells).
        """
        if self.order == "align_first":
            places = self._find(batch, [grid_of(one) for one in networks[0]])
            return [places.read(maps) for maps in networks], places.weight.expand(2, -1, -1)
        joined = [self._joined(maps) for maps in networks]
        share = (valid_share(batch.valid.flatten(0, 1), grid_of(joined[0])) >= 0.5).flatten(1)
        return [one.unflatten(0, batch.count) for one in joined], share.unflatten(0, batch.count)

    def read(
        self, batch: ViewBatch, kept: Sequence[Tensor], share: Tensor, heads: Sequence[Head | None]
    ) -> tuple[list[Tensor], Tensor]:
        """Pass what `gather` kept of each network through its head, and read it at the shared places.

        Returns:
            Per network (2, B, P, C), and the weight (B, P) of each place.
        """
        if self.order == "align_first":
            return [_passed(rows, share, head) for rows, head in zip(kept, heads, strict=True)], share[0]
        d, h, w = kept[0].shape[3:]
        places = self._find(batch, [(d, h, w)])
        out = []
        for one, head in zip(kept, heads, strict=True):
            rows = _passed(one.flatten(3).transpose(2, 3), share, head)
            out.append(places.read([rows.transpose(2, 3).flatten(0, 1).unflatten(2, (d, h, w))]))
        return out, places.weight

    def _joined(self, maps: Sequence[Tensor]) -> Tensor:
        """Bring dense maps to one grid and join their channels, (N, ΣC, d, h, w)."""
        if self.geometry == "latentcampus":
            return gather_stages(maps)
        grid = common_grid([grid_of(one) for one in maps])
        return torch.cat([resize(one, grid) for one in maps], dim=1)

    def _find(self, batch: ViewBatch, grids: list[Size]) -> Places:
        if self.geometry == "latentcampus":
            return find_latentcampus_correspondences(batch.claimed_boxes, self.cells, self.samples, batch.valid.device)
        a, b = batch.to_volume[0], batch.to_volume[1]
        return find_correspondences(a, b, batch.size, grids, batch.valid, self.cells, self.samples)


def _passed(rows: Tensor, share: Tensor, head: Head | None) -> Tensor:
    """Pass rows (2, B, P, C) of weight (2, B, P) through a head."""
    if head is None:
        return at_least_float32(rows)
    out: Tensor = head(rows.flatten(0, 2), share.flatten()).unflatten(0, rows.shape[:3])
    return out


def grid_of(features: Tensor) -> Size:
    """Return (d, h, w) of a map (N, C, d, h, w)."""
    return (features.shape[2], features.shape[3], features.shape[4])
