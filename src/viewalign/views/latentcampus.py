"""The geometry of the code released with the paper (LatentCampus, commit 267c976), for comparison only.

It is written from a description of that code; docs/released-geometry.md lists each difference with its measured effect.
It is intentionally wrong: views are described by boxes that are not where the crops are, and the boxes are read with
the first and the last axis exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.precision import at_least_float32, send
from viewalign.utils.shapes import Size
from viewalign.views import affines
from viewalign.views.alignment import sample
from viewalign.views.sampling import ISOTROPIC, SampledViews, Spacing, ViewSamplingConfig, sample_affine

STAGE_GRID: Size = (16, 16, 16)
"""Grid to which the stages of a CNN are resized, whatever the size of the views."""


@dataclass(frozen=True)
class LatentCampusPair(SampledViews):
    """Two views with their true affines, and the overlap that the released code assumes.

    Attributes:
        claimed: (2, 2, 3) float64 by view, lower or upper end, and axis: the box of a view in which it is assumed to
            overlap the other, as fractions of the view.
    """

    claimed: Tensor


def sample_latentcampus(
    rng: np.random.Generator, shape: Size, config: ViewSamplingConfig, spacing: Spacing = ISOTROPIC
) -> LatentCampusPair:
    """Sample two views as the released code does; arguments are those of `sample_pair`.

    The volume takes the place of the released base crop: flips, rotation and scale are sampled for all of it, and both
    views are cropped from the result, the first always at the low corner and the second at the high corner.

    With views of `p` voxels, a volume of `V` and an overlap of `o = int(p·f)`, the views start at `c + o//2 - p` and
    `c - o//2` around a centre `c`. Which centres are valid is inferred from the published frequencies of the fallback,
    which `p - ⌈o/2⌉ + 1 ≤ c < V - p + ⌈o/2⌉ - 1` reproduces within their error for ten sizes; the exact condition
    `V ≥ 2p - o` would fall back in 75 % and not in 91 % of samples of 64³ views in 76³. On an axis without a valid
    centre both views start at 0, and the boxes still describe a shift.
    """
    if config.independent:
        raise ValueError("the released code cannot align views that are rotated independently")
    size, extent = np.array(config.size), np.array(shape)
    fractions = rng.uniform(*config.overlap) ** rng.dirichlet(np.ones(3))
    common = (size * fractions).astype(np.int64)
    half, rest = common // 2, common - common // 2
    low, high = size - rest + 1, extent - size + rest - 1
    centre = rng.integers(low, np.maximum(high, low + 1))
    starts = np.where(low < high, np.stack([centre + half - size, centre - half]), 0)
    base = sample_affine(rng, shape, replace(config, size=shape), spacing)
    offsets = affines.identity(2)
    offsets[..., 3] = torch.from_numpy(starts).double()
    boxes = np.array([[1 - fractions, np.ones(3)], [np.zeros(3), fractions]])
    overlap = float(np.prod(1 - (starts[1] - starts[0]) / size))
    return LatentCampusPair(affines.compose(base.expand_as(offsets), offsets), overlap, torch.from_numpy(boxes))


@dataclass(frozen=True)
class LatentCampusCorrespondence:
    """Positions that the released code treats as shared; used in place of an `alignment.Correspondence`.

    Attributes:
        claimed: (2, B, 2, 3) the views' boxes.
        weight: (B, cells) all 1: the released code ignores neither padding nor points outside.
        cells, samples: output cells, and points per axis and cell.
    """

    claimed: Tensor
    weight: Tensor
    cells: Size
    samples: int

    def read(self, features: Sequence[Tensor]) -> Tensor:
        """Read features (2·B, C, d, h, w), several maps on `STAGE_GRID`; returns (2, B, cells, ΣC)."""
        values = read_boxes(gather_stages(features), self.claimed.flatten(0, 1), self.cells, self.samples)
        out: Tensor = values.flatten(2).transpose(1, 2).unflatten(0, (2, self.weight.shape[0]))
        return out


def find_latentcampus_correspondences(
    claimed: Tensor | None, cells: Size = (7, 7, 7), samples: int = 2, device: torch.device | str = "cpu"
) -> LatentCampusCorrespondence:
    """Use the claimed boxes (2, B, 2, 3) of a batch.

    Raises:
        ValueError: the batch has none, because its views are not from `sample_latentcampus`.
    """
    if claimed is None:
        raise ValueError("the released geometry needs the boxes of views from `sample_latentcampus`")
    weight = torch.ones(claimed.shape[1], cells[0] * cells[1] * cells[2], device=device)
    return LatentCampusCorrespondence(claimed, weight, cells, samples)


def read_boxes(features: Tensor, boxes: Tensor, cells: Size = (7, 7, 7), samples: int = 2) -> Tensor:
    """Read features (N, C, d, h, w) in relative boxes (N, 2, 3), with the errors of the released ROI-Align.

    Component 0 of a box is used for the last axis and component 2 for the first. Its ends are used as centres of the
    outermost cells. The points, `samples` times `cells` per axis in array order, are averaged to the output size in
    reverse order.

    Returns:
        (N, C, cells[2], cells[1], cells[0]), float32 or float64; differentiable in the features.
    """
    grid = torch.tensor(features.shape[2:], dtype=torch.float64)
    counts = (cells[0] * samples, cells[1] * samples, cells[2] * samples)
    ends = boxes.flip(-1).double() * (grid - 1)
    steps = torch.cartesian_prod(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in counts))
    where = send(ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * steps, features.device)
    values = sample(features, where).transpose(1, 2).unflatten(2, counts)
    return F.adaptive_avg_pool3d(values, cells[::-1])


def gather_stages(maps: Sequence[Tensor]) -> Tensor:
    """Resize the stages of a CNN to `STAGE_GRID` by replication and concatenate them; a single map is not changed."""
    if len(maps) == 1:
        return maps[0]
    return torch.cat([F.adaptive_avg_pool3d(at_least_float32(stage), STAGE_GRID) for stage in maps], dim=1)


def misplacement(
    pairs: Sequence[LatentCampusPair], size: Size, grid: Size | None = None, cells: Size = (7, 7, 7)
) -> Tensor:
    """Return the distance between the positions that the released code compares, (pairs, cells) in voxels.

    Coordinates are read in place of features on a grid (None: one cell per voxel). Coordinates and reading are linear,
    so the two outermost cells per axis represent the whole grid.
    """
    ends = [(n / g - 1) / 2 for n, g in zip(size, grid or size, strict=True)]
    axes = [torch.tensor([end, n - 1 - end], dtype=torch.float64) for end, n in zip(ends, size, strict=True)]
    ramp = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(2 * len(pairs), -1, -1, -1, -1)
    claimed = torch.stack([pair.claimed for pair in pairs], dim=1)
    index = find_latentcampus_correspondences(claimed, cells).read([ramp])
    positions = affines.apply(torch.stack([pair.to_volume for pair in pairs], dim=1), index)
    out: Tensor = torch.linalg.vector_norm(positions[0] - positions[1], dim=-1)
    return out
