"""Bring an image's axes to one order, and back.

The stored frame is LPS: indices along W grow towards the patient's left, along H towards posterior, along D towards
superior. Axes are only permuted and flipped, so no voxel value changes and an oblique image stays oblique.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)
Direction = NDArray[np.float64]
_POSITIVE = "LPS"
_NEGATIVE = "RAI"


@dataclass(frozen=True)
class Reorientation:
    """How a file's array axes became the stored ones.

    Attributes:
        axes: stored array axis a comes from the file's array axis `axes[a]`, as in `np.transpose`.
        flips: after that, stored axis a is reversed where `flips[a]`.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Number]) -> NDArray[Number]:
        """Return a view of a file's array (D, H, W) in the stored frame."""
        return np.flip(np.transpose(array, self.axes), self._flipped())

    def invert(self, array: NDArray[Number]) -> NDArray[Number]:
        """Return a view of a stored-frame array (D, H, W) in the frame of its file: undoes `apply` exactly."""
        return np.transpose(np.flip(array, self._flipped()), np.argsort(self.axes))

    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis, flip in enumerate(self.flips) if flip)


def orientation_code(direction: Direction) -> str:
    """Return the three letters, e.g. `LPS`, towards which a file's x, y and z indices grow.

    Args:
        direction: 3×3, column i the world direction (LPS) of index axis i, in the order x, y, z.
    """
    worlds = _nearest_world_axes(direction)
    return "".join(
        (_POSITIVE if direction[world, index] >= 0 else _NEGATIVE)[world] for index, world in enumerate(worlds)
    )


def reorientation_to_lps(direction: Direction) -> Reorientation:
    """Return the permutation and flips that bring an image with this direction (3×3; x, y, z) to LPS."""
    worlds = _nearest_world_axes(direction)
    axes, flips = [], []
    for stored in range(3):
        index = worlds.index(2 - stored)
        axes.append(2 - index)
        flips.append(bool(direction[2 - stored, index] < 0))
    return Reorientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def _nearest_world_axes(direction: Direction) -> tuple[int, ...]:
    """Return for x, y, z the world axis each runs along: the assignment with the largest sum of cosines."""
    return max(permutations(range(3)), key=lambda worlds: sum(abs(direction[w, i]) for i, w in enumerate(worlds)))
