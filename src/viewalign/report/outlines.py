"""Label maps over slices: their outlines as lines along the edges of pixels."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

Bool = NDArray[np.bool_]


def outline(kind: str, mask: Bool) -> Markup:
    """Draw the border of the true pixels of a mask (rows, columns), with a dark rim beneath so that it is seen.

    Args:
        kind: class of the line.
        mask: pixels inside.

    Returns:
        Two paths in units of pixels; nothing for an empty mask.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    across = [f"M{a - 1} {y}H{b - 1}" for y, a, b in _runs(np.diff(padded, axis=0))]
    down = [f"M{x} {a - 1}V{b - 1}" for x, a, b in _runs(np.diff(padded, axis=1).T)]
    d = "".join(across + down)
    return Markup('<path class="rim" d="{0}"/><path class="{1}" d="{0}"/>').format(d, kind) if d else Markup("")


def _runs(changes: NDArray[np.int8]) -> list[tuple[int, int, int]]:
    """Return (line, start, end) of each run of changes of one sign on a line of pixel edges."""
    found = []
    for line, row in enumerate(changes):
        for sign in (1, -1):
            steps = np.flatnonzero(np.diff((row == sign).astype(np.int8), prepend=0, append=0)).tolist()
            found += [(line, a, b) for a, b in zip(steps[::2], steps[1::2], strict=True)]
    return found
