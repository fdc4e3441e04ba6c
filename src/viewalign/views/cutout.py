"""Boxes that are cut out of a view until a share of it is gone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int, int]
_MOST = 64


def draw_boxes(rng: np.random.Generator, size: Size, share: float, largest: float) -> Tensor:
    """Draw boxes that cover at most `share` of a view, (D, H, W) bool.

    How much is covered is drawn too, evenly up to `share`; boxes are added while the next one still fits in.

    Args:
        rng: the image's own generator.
        size: of the view.
        share: the most that is covered.
        largest: the longest side of a box as a share of the view's; the shortest is half of that.
    """
    covered = np.zeros(size, dtype=bool)
    wanted = rng.uniform(0, share) * covered.size
    for _ in range(_MOST):
        place = []
        for n in size:
            top = max(1, int(n * largest))
            side = int(rng.integers(max(1, top // 2), top + 1))
            start = int(rng.integers(0, n - side + 1))
            place.append(slice(start, start + side))
        added = int((~covered[tuple(place)]).sum())
        if covered.sum() + added > wanted:
            break
        covered[tuple(place)] = True
    return torch.from_numpy(covered)
