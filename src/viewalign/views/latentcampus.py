"""The geometry of the code released with the paper (LatentCampus, commit 267c976), for comparison only.

Written from a description of what that code does; `docs/released-geometry.md` lists every difference with its measured
effect. Nothing here is meant to be right: views are described by float boxes that are not where the crops are, and the
boxes are read with the first and the last axis exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32, send
from viewalign.views import affines
from viewalign.views.alignment import sample
from viewalign.views.sampling import SampledViews, ViewSamplingConfig, sample_single

Size = tuple[int, int, int]
STAGE_GRID: Size = (16, 16, 16)
"""What the stages of a CNN are brought to, whatever the view's size."""


@dataclass(frozen=True)
class LatentCampusPair(SampledViews):
    """Two views with their true affines, and what the released code believes of them.

    Attributes:
        claimed: (2, 2, 3) float64: view, lower or upper end, axis: the box in which a view is said to overlap the
            other, as fractions of the view.
    """

    claimed: Tensor


def sample_latentcampus(
    rng: np.random.Generator,
    shape: Size,
    drawing: ViewSamplingConfig,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> LatentCampusPair:
    """Draw two views as the released code does; arguments are those of `draw_pair`.

    The volume stands for the released base crop: mirror, rotation and scale are drawn for the whole of it, and both
    views are cut out of what results, the first always at the low corner and the second at the high one.

    With `p` voxels a side in a volume of `V` and an overlap of `o = int(p·f)`, the views begin at `c + o//2 - p` and
    `c - o//2` about a centre `c`. Which centres count as valid is inferred from the published frequencies of the
    fallback, which `p - ⌈o/2⌉ + 1 ≤ c < V - p + ⌈o/2⌉ - 1` reproduces within their own error for ten sizes; a rule
    with the exact room, `V ≥ 2p - o`, would fire in 75 % and not in 91 % of draws of 64³ views in 76³. Where an axis
    has no valid centre both views begin at 0 on it, and the boxes go on to claim a shift.
    """
    if drawing.independent:
        raise ValueError("the released code cannot align views that have frames of their own")
    size, extent = np.array(drawing.size), np.array(shape)
    fractions = rng.uniform(*drawing.overlap) ** rng.dirichlet(np.ones(3))
    common = (size * fractions).astype(np.int64)
    half, rest = common // 2, common - common // 2
    low, high = size - rest + 1, extent - size + rest - 1
    centre = rng.integers(low, np.maximum(high, low + 1))
    starts = np.where(low < high, np.stack([centre + half - size, centre - half]), 0)
    base = sample_single(rng, shape, replace(drawing, size=shape), spacing)
    boxes = np.array([[1 - fractions, np.ones(3)], [np.zeros(3), fractions]])
    overlap = float(np.prod(1 - (starts[1] - starts[0]) / size))
    return LatentCampusPair(_begin_at(base, torch.from_numpy(starts)), overlap, torch.from_numpy(boxes))


def _begin_at(base: Tensor, starts: Tensor) -> Tensor:
    """Return the affines (V, 3, 4) of views that begin at `starts` (V, 3) in the frame `base` (3, 4)."""
    moves = affines.identity(starts.shape[0])
    moves[..., 3] = starts.double()
    return affines.compose(base.expand_as(moves), moves)


@dataclass(frozen=True)
class LatentCampusCorrespondence:
    """Places that the released code takes for shared; stands where an `alignment.Correspondence` does.

    Attributes:
        claimed: (2, B, 2, 3), the views' boxes.
        weight: (B, cells), all 1: the released code knows neither padding nor points outside.
        cells, samples: the output size that is asked for, and points per axis and cell.
    """

    claimed: Tensor
    weight: Tensor
    cells: Size
    samples: int

    def read(self, features: Sequence[Tensor]) -> Tensor:
        """Read features (2·B, C, d, h, w), several of them on `STAGE_GRID`; returns (2, B, cells, ΣC)."""
        read = read_boxes(gather_stages(features), self.claimed.flatten(0, 1), self.cells, self.samples)
        out: Tensor = read.flatten(2).transpose(1, 2).unflatten(0, (2, self.weight.shape[0]))
        return out


def find_latentcampus_correspondences(
    claimed: Tensor | None, cells: Size = (7, 7, 7), samples: int = 2, device: torch.device | str = "cpu"
) -> LatentCampusCorrespondence:
    """Take the boxes (2, B, 2, 3) of a batch at their word.

    Raises:
        ValueError: the batch has none, because its views were not drawn by `draw_released`.
    """
    if claimed is None:
        raise ValueError("released geometry needs the boxes of views drawn by `draw_released`")
    weight = torch.ones(claimed.shape[1], cells[0] * cells[1] * cells[2], device=device)
    return LatentCampusCorrespondence(claimed, weight, cells, samples)


def read_boxes(features: Tensor, boxes: Tensor, cells: Size = (7, 7, 7), samples: int = 2) -> Tensor:
    """Read features (N, C, d, h, w) in relative boxes (N, 2, 3), with the mistakes of the released ROI-Align.

    A box's component 0 is taken for the last axis and its component 2 for the first. Its ends are taken for the
    centres of the outermost cells. The points, `samples` times `cells` per axis in array order, are then averaged to
    the output size in the reverse order.

    Returns:
        (N, C, cells[2], cells[1], cells[0]), in float32 or better; differentiable in the features.
    """
    grid = torch.tensor(features.shape[2:], dtype=torch.float64)
    counts = (cells[0] * samples, cells[1] * samples, cells[2] * samples)
    where = send(_spread(boxes.flip(-1).double() * (grid - 1), counts), features.device)
    values = sample(features, where).transpose(1, 2).unflatten(2, counts)
    return F.adaptive_avg_pool3d(values, cells[::-1])


def _spread(ends: Tensor, counts: Size) -> Tensor:
    """Return evenly spaced points (N, P, 3) in raster order, from end to end of boxes (N, 2, 3)."""
    steps = torch.cartesian_prod(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in counts))
    return ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * steps


def gather_stages(maps: Sequence[Tensor]) -> Tensor:
    """Bring the stages of a CNN to one grid and join their channels; a single map stays as it is."""
    if len(maps) == 1:
        return maps[0]
    return torch.cat([resize_by_replication(stage, STAGE_GRID) for stage in maps], dim=1)


def resize_by_replication(features: Tensor, grid: Size) -> Tensor:
    """Bring (N, C, d, h, w) to a grid by adaptive average pooling, which repeats the cells of a coarser map."""
    return F.adaptive_avg_pool3d(at_least_float32(features), grid)


def misplacement(
    pairs: Sequence[LatentCampusPair], size: Size, grid: Size | None = None, cells: Size = (7, 7, 7)
) -> Tensor:
    """Return how far apart the places are that the released code compares, (pairs, cells) in voxels of the volume.

    Coordinates are read in the place of features of `grid` cells (None: one a voxel). They are linear, and reading is
    too, so the two outermost cells per axis carry all that the whole grid would.
    """
    ends = [(n / g - 1) / 2 for n, g in zip(size, grid or size, strict=True)]
    axes = [torch.tensor([end, n - 1 - end], dtype=torch.float64) for end, n in zip(ends, size, strict=True)]
    ramp = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(2 * len(pairs), -1, -1, -1, -1)
    claimed = torch.stack([pair.claimed for pair in pairs], dim=1)
    seen = find_latentcampus_correspondences(claimed, cells).read([ramp])
    places = affines.apply(torch.stack([pair.to_volume for pair in pairs], dim=1), seen)
    out: Tensor = torch.linalg.vector_norm(places[0] - places[1], dim=-1)
    return out
