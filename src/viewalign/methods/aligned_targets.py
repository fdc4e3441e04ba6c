"""Dense targets at the same position of a volume in views of any size, scale and rotation.

Positions are cells of the student's feature grids; their places in the teacher's grids follow from the views' affines.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from viewalign.losses.distillation import token_cross_entropy
from viewalign.methods import rng
from viewalign.methods.base import Latents
from viewalign.utils.pooling import valid_fraction
from viewalign.utils.precision import send
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views.alignment import find_points, view_points
from viewalign.views.batch import ViewBatch


class AlignedTargets:
    """Compares random cells of every view with the teacher's features at the same places of the other global views.

    Args:
        positions: cells of a view, at most all of its grid.
    """

    def __init__(self, positions: int = 128) -> None:
        self._positions = positions

    def gather(
        self, batch: ViewBatch, features: Tensor, local_features: Tensor, teacher: Tensor | None, seed: int
    ) -> Latents:
        """Read features of student and teacher at the sampled positions.

        Args:
            batch: two global views, and L local ones, of B volumes.
            features: (2·B, C, d, h, w) of the student's global views.
            local_features: (L·B, C, d', h', w') of its local views.
            teacher: (2·B, C, d, h, w) of the teacher, or None.
            seed: of the run.

        Returns:
            "aligned" (2, B, M, C) and "aligned_local" (L, B, M', C) of the student; of a teacher "teacher_aligned"
            (2, B, M + L·M', C), in each global view at the positions of the other one and of all local views, and
            "aligned_valid" (2, B, M + L·M') bool, whether a position shows the volume in both views.
        """
        assert batch.local is not None, "views are from `sample_multi_crop`"
        both = ((batch, features, "positions"), (batch.local, local_features, "positions of local"))
        latents: Latents = {}
        points: list[Tensor] = []
        valid: list[Tensor] = []
        for name, (views, maps, purpose) in zip(("aligned", "aligned_local"), both, strict=True):
            grid = spatial_size(maps)
            cells = self._sample(views, grid, seed, purpose)
            chosen = send(cells, maps.device)
            latents[name] = read_cells(maps, chosen).unflatten(0, views.count)
            points.append(view_points(cells.unflatten(0, views.count), grid, views.to_volume, views.size))
            valid.append(valid_cells(views, maps).gather(1, chosen).unflatten(0, views.count))
        if teacher is None:
            return latents
        read, used = find_points(_per_target(*points), batch.to_volume, batch.size, spatial_size(teacher), batch.valid)
        targets = read(teacher).unflatten(0, used.shape)
        return {**latents, "teacher_aligned": targets, "aligned_valid": used & _per_target(*valid)}

    def loss(self, latents: Latents, targets: Tensor, head: Callable[[Tensor], Tensor], temperature: float) -> Tensor:
        """Return the cross-entropy of the student's prototypes with targets (2·B, M + L·M', K) at the same places."""
        student = _per_target(head(latents["aligned"]), head(latents["aligned_local"])).flatten(0, 1)
        return token_cross_entropy(student, targets, latents["aligned_valid"].flatten(0, 1), temperature)

    def _sample(self, views: ViewBatch, grid: Size, seed: int, purpose: str) -> Tensor:
        """Sample different cells (N, M) of every view, int64 on the CPU."""
        total = grid[0] * grid[1] * grid[2]
        count = min(self._positions, total)
        rows = [generator.permutation(total)[:count] for generator in rng.generators(views, seed, purpose)]
        return torch.from_numpy(np.stack(rows))


def _per_target(whole: Tensor, local: Tensor) -> Tensor:
    """Join what belongs to the positions (2, B, M, ...) and (L, B, M', ...) that each global view is the target of.

    Returns:
        (2, B, M + L·M', ...): positions of the other global view, then those of all local views.
    """
    joined = local.transpose(0, 1).flatten(1, 2)
    return torch.cat([whole.flip(0), joined.expand(2, *joined.shape)], dim=2)


def read_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Return the vectors (N, M, C) of maps (N, C, d, h, w) at cells (N, M), numbered in raster order."""
    rows = maps.flatten(2).transpose(1, 2)
    return rows.gather(1, cells[..., None].expand(-1, -1, rows.shape[-1]))


def valid_cells(views: ViewBatch, maps: Tensor) -> Tensor:
    """Return which cells of the maps (N, C, d, h, w) of views are valid by half or more, (N, cells) bool."""
    return (valid_fraction(views.valid.flatten(0, 1), spatial_size(maps)) >= 0.5).flatten(1)
