"""A grid of neighbouring views and further ones that lie somewhere over it: the layout of VoCo (arXiv:2402.17300)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.views import affines, lattice
from viewalign.views.sampling import LocalView, SampledViews, ViewSamplingConfig, sample_single

Size = tuple[int, int, int]


def sample_grid(
    rng: np.random.Generator,
    shape: Size,
    drawing: ViewSamplingConfig,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    grid: Size = (1, 4, 4),
    targets: int = 4,
) -> SampledViews:
    """Draw `targets` views anywhere within a region, then the views of the grid that tile it, in raster order.

    All lie in one frame, so that the share of a target in a cell of the grid is that of two boxes (`overlaps`).

    Args:
        rng, shape, drawing, spacing: as for `drawing.draw_pair`.
        grid: how many views tile the region along (D, H, W).
        targets: how many views lie anywhere within it, at whole voxels.
    """
    size = np.array(drawing.size)
    region = tuple(int(n) for n in size * np.array(grid))
    frame = sample_single(
        rng, shape, ViewSamplingConfig(**{**vars(drawing), "size": (region[0], region[1], region[2])}), spacing
    )
    room = np.array(region) - size
    free = rng.integers(0, room + 1, (targets, 3))
    tiles = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 3) * size
    starts = torch.from_numpy(np.concatenate([free, tiles]).astype(np.float64))
    shift = affines.apply(frame, starts)
    return SampledViews(torch.cat([frame[None, :, :3].expand(len(starts), 3, 3), shift[:, :, None]], dim=2), 1.0)


def overlaps(to_volume: Tensor, size: Size, targets: int) -> Tensor:
    """Return which share of each target lies in each cell of the grid, (B, targets, cells) float64 in [0, 1].

    Args:
        to_volume: (V, B, 3, 4) of views drawn by `draw_grid`: one frame, targets first.
        size: (D, H, W) of a view.
        targets: how many of the views are targets.
    """
    inverse = affines.invert(to_volume[targets])
    starts = torch.stack([affines.compose(inverse, one)[..., 3] for one in to_volume], dim=1)
    extent = torch.tensor(size, dtype=torch.float64)
    apart = (starts[:, :targets, None] - starts[:, None, targets:]).abs()
    return ((extent - apart).clamp(min=0) / extent).prod(-1)


Whole = NDArray[np.int64]
Range = tuple[float, float]
_TRIES = 50


@dataclass(frozen=True)
class NestedViewConfig:
    """How large views and boxes are; boxes are whole voxels of a region, each brought to the size of its view.

    Attributes:
        region: side of the region that holds all boxes, as a share of a large view's.
        extent: side of a large view's box, as a share of the view's.
        min_iou: the least share of their union that the two boxes have in common.
        locals: how many small views there are; they lie in the first and the second large box by turns.
        local_size: (D, H, W) of a small view in voxels.
        local_extent: side of a small view's box, as a share of the view's.
    """

    region: float = 1.41
    extent: Range = (0.75, 1.25)
    min_iou: float = 0.3
    locals: int = 6
    local_size: Size = (64, 64, 64)
    local_extent: Range = (0.5, 1.0)


@dataclass(frozen=True)
class Box:
    """Whole voxels [low, low + sides) of the region."""

    low: Whole
    sides: Whole


def sample_nested(
    rng: np.random.Generator,
    shape: Size,
    drawing: ViewSamplingConfig,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    nesting: NestedViewConfig | None = None,
) -> SampledViews:
    """Draw two large views and the small ones inside them.

    All boxes lie in one frame, so that what two of them share is that of two boxes; each view is mirrored for itself,
    which moves no box.

    Args:
        rng, shape, drawing, spacing: as for `drawing.draw_pair`.
        nesting: sizes of boxes; those published where it is None.
    """
    nesting = nesting or NestedViewConfig()
    size = np.array(drawing.size)
    sides = np.rint(size * nesting.region).astype(np.int64).tolist()
    region = (sides[0], sides[1], sides[2])
    frame = sample_single(rng, shape, replace(drawing, size=region, mirror=False), spacing)
    large = _draw_large(rng, size, np.array(region), nesting)
    small = [_draw_small(rng, large[k % 2], nesting) for k in range(nesting.locals)]
    views = _maps(rng, frame, large, drawing.size, drawing.mirror)
    local = (
        LocalView(_maps(rng, frame, small, nesting.local_size, drawing.mirror), nesting.local_size) if small else None
    )
    return SampledViews(views, lattice.shared_fraction(views, drawing.size), local=local)


def _draw_large(rng: np.random.Generator, size: Whole, region: Whole, nesting: NestedViewConfig) -> tuple[Box, Box]:
    """Draw the first box, then a second one until both share enough; the first again where that never comes."""
    whole = Box(np.zeros(3, dtype=np.int64), region)
    first = _draw_box(rng, whole, size, nesting.extent)
    for _ in range(_TRIES):
        second = _draw_box(rng, whole, size, nesting.extent)
        if iou(first, second) >= nesting.min_iou:
            return first, second
    return first, first


def _draw_small(rng: np.random.Generator, within: Box, nesting: NestedViewConfig) -> Box:
    return _draw_box(rng, within, np.array(nesting.local_size), nesting.local_extent)


def _draw_box(rng: np.random.Generator, within: Box, size: Whole, extent: Range) -> Box:
    """Draw a box of `size` times one factor anywhere within another one."""
    sides = np.clip(np.rint(size * rng.uniform(*extent)), 1, within.sides).astype(np.int64)
    return Box(within.low + rng.integers(0, within.sides - sides + 1), sides)


def iou(a: Box, b: Box) -> float:
    """Return the share of the union of two boxes that both hold."""
    shared = np.minimum(a.low + a.sides, b.low + b.sides) - np.maximum(a.low, b.low)
    both = float(np.clip(shared, 0, None).prod())
    return both / float(a.sides.prod() + b.sides.prod() - both)


def _maps(rng: np.random.Generator, frame: Tensor, boxes: Sequence[Box], size: Size, mirror: bool) -> Tensor:
    """Return the affines (V, 3, 4) of views of `size` voxels, each of which shows the whole of its box."""
    made = []
    for box in boxes:
        step = torch.from_numpy(box.sides / np.array(size))
        low = torch.from_numpy(box.low.astype(np.float64)) + step / 2 - 0.5
        flip = torch.from_numpy(rng.random(3) < 0.5) & mirror
        linear = torch.where(flip, -step, step)
        shift = torch.where(flip, low + step * (torch.tensor(size) - 1), low)
        made.append(torch.cat([torch.diag(linear), shift[:, None]], dim=1))
    return affines.compose(frame.expand(len(made), 3, 4), torch.stack(made))
