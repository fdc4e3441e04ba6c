"""Two large views that share enough, and small ones inside them: PCRLv2's layout (Zhou et al., arXiv:2301.00772).

The paper calls it "sub-crop": small views anywhere in a 3D volume would often show another organ, so they are cut out
of the region that the large ones show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.views import affines, lattice
from viewalign.views.drawing import Drawing, Drawn, Local, draw_single

Size = tuple[int, int, int]
Whole = NDArray[np.int64]
Range = tuple[float, float]
_TRIES = 50


@dataclass(frozen=True)
class Nesting:
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


def draw_nested(
    rng: np.random.Generator,
    shape: Size,
    drawing: Drawing,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    nesting: Nesting | None = None,
) -> Drawn:
    """Draw two large views and the small ones inside them.

    All boxes lie in one frame, so that what two of them share is that of two boxes; each view is mirrored for itself,
    which moves no box.

    Args:
        rng, shape, drawing, spacing: as for `drawing.draw_pair`.
        nesting: sizes of boxes; those published where it is None.
    """
    nesting = nesting or Nesting()
    size = np.array(drawing.size)
    sides = np.rint(size * nesting.region).astype(np.int64).tolist()
    region = (sides[0], sides[1], sides[2])
    frame = draw_single(rng, shape, replace(drawing, size=region, mirror=False), spacing)
    large = _draw_large(rng, size, np.array(region), nesting)
    small = [_draw_small(rng, large[k % 2], nesting) for k in range(nesting.locals)]
    views = _maps(rng, frame, large, drawing.size, drawing.mirror)
    local = Local(_maps(rng, frame, small, nesting.local_size, drawing.mirror), nesting.local_size) if small else None
    return Drawn(views, lattice.shared_fraction(views, drawing.size), local=local)


def _draw_large(rng: np.random.Generator, size: Whole, region: Whole, nesting: Nesting) -> tuple[Box, Box]:
    """Draw the first box, then a second one until both share enough; the first again where that never comes."""
    whole = Box(np.zeros(3, dtype=np.int64), region)
    first = _draw_box(rng, whole, size, nesting.extent)
    for _ in range(_TRIES):
        second = _draw_box(rng, whole, size, nesting.extent)
        if iou(first, second) >= nesting.min_iou:
            return first, second
    return first, first


def _draw_small(rng: np.random.Generator, within: Box, nesting: Nesting) -> Box:
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
