"""Intersections of planes with views, boxes and correspondences: the geometry of the page's pictures.

Arrays are (D, H, W) in an LPS frame: D grows towards the head, H towards the back, W towards the patient's left. Slices
are shown in radiological convention: the patient's right is on the left, anterior and superior are up.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from viewalign.views import affines, lattice

Points = NDArray[np.float64]
Size = tuple[int, int, int]
Bool = NDArray[np.bool_]
Grey = NDArray[np.float32]


@dataclass(frozen=True)
class Plane:
    """One of the three planes of a volume.

    Attributes:
        name: its name.
        axis: the axis perpendicular to it.
        rows, columns: the axes of its slices.
        upward: whether the row axis grows towards the top of the picture.
    """

    name: str
    axis: int
    rows: int
    columns: int
    upward: bool


PLANES = (
    Plane("Axial", 0, 1, 2, upward=False),
    Plane("Coronal", 1, 0, 2, upward=True),
    Plane("Sagittal", 2, 0, 1, upward=True),
)


def cut(array: NDArray[np.generic], plane: Plane, position: int) -> NDArray[np.generic]:
    """Return the slice (rows, columns, ...) of an array (D, H, W, ...), as it is shown."""
    picture: NDArray[np.generic] = np.take(array, position, axis=plane.axis)
    return picture[::-1] if plane.upward else picture


def flat(points: Points, plane: Plane, size: Size) -> Points:
    """Project points (N, 3) onto a slice as (x, y) in pixels from its top left corner."""
    x, y = points[:, plane.columns] + 0.5, points[:, plane.rows] + 0.5
    return np.stack([x, size[plane.rows] - y if plane.upward else y], axis=1)


def corners(low: Points, high: Points) -> Points:
    """Return the eight corners (8, 3) of a box, in the order that `section` expects."""
    return np.array([[(low, high)[k][axis] for axis, k in enumerate(which)] for which in product((0, 1), repeat=3)])


_EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in {1, 2, 4}]


def section(box: Points, axis: int, position: float) -> Points:
    """Cut a box, defined by its corners under any affine map, with the plane `axis = position`.

    Returns:
        (N, 3) vertices of the convex polygon in order, N from 3 to 6; empty if the plane misses the box.
    """
    found = []
    for a, b in _EDGES:
        from_plane, to_plane = box[a, axis] - position, box[b, axis] - position
        if (from_plane > 0) != (to_plane > 0):
            found.append(box[a] + (box[b] - box[a]) * (from_plane / (from_plane - to_plane)))
    if len(found) < 3:
        return np.zeros((0, 3))
    points = np.array(found)
    others = [k for k in range(3) if k != axis]
    centred = points[:, others] - points[:, others].mean(0)
    return points[np.argsort(np.arctan2(centred[:, 1], centred[:, 0]))]


@dataclass(frozen=True)
class Scene:
    """Two views of one volume: their boxes, and the region they share.

    Attributes:
        to_volume: (2, 3, 4), from a view's voxel index to the volume's.
        size: of a view.
        points: (2, P, 3), the compared locations in each view's voxel index.
        common: (8, 3), the corners of the shared box in the first view's voxel index.
    """

    to_volume: Points
    size: Size
    points: Points
    common: Points

    def box_in_volume(self, view: int) -> Points:
        """Return the corners of a view's box in the volume, voxel edges included."""
        edge = np.array(self.size) - 0.5
        return _apply(self.to_volume[view], corners(np.full(3, -0.5), edge))

    def common_in_volume(self) -> Points:
        """Return the corners of the shared box in the volume."""
        return _apply(self.to_volume[0], self.common)

    def common_in(self, view: int) -> Points:
        """Return the corners of the shared box in a view."""
        inverse = affines.invert(torch.from_numpy(self.to_volume[view])).numpy()
        return _apply(inverse, self.common_in_volume())

    def centre_in(self, view: int) -> tuple[int, int, int]:
        """Return the voxel of a view at the centre of the shared region."""
        d, h, w = (
            int(np.clip(round(float(c)), 0, n - 1))
            for c, n in zip(self.common_in(view).mean(0), self.size, strict=True)
        )
        return d, h, w

    def near(self, view: int, plane: Plane, position: int) -> Points:
        """Return the compared locations of the layer next to a plane of a view."""
        away = np.abs(self.points[view][:, plane.axis] - position)
        box = self.common_in(view)
        count = max(round(len(away) ** (1 / 3)), 1)
        step = float(np.ptp(box[:, plane.axis])) / count
        layer: Points = self.points[view][away <= away.min() + 0.45 * step]
        return layer


def scene(to_volume: Points, size: Size, points: Points) -> Scene:
    """Compute the region that two views share; of a single view (1, 3, 4), its own box."""
    maps = torch.from_numpy(np.asarray(to_volume, dtype=np.float64))
    low, high = lattice.common_box(maps[:1], maps[-1:], size)
    common = corners(low[0].numpy(), high[0].numpy())
    return Scene(maps.numpy(), size, np.asarray(points, dtype=np.float64), common)


def _apply(affine: Points, points: Points) -> Points:
    moved: Points = points @ affine[:, :3].T + affine[:, 3]
    return moved


def around(crop: Grey, corners: Points) -> tuple[Grey, Bool, Points]:
    """Widen a crop until it holds the corners (N, 3) of boxes.

    Returns:
        The wider crop, what in it is outside the old one, and how far old indices have moved.
    """
    before = np.ceil(np.maximum(-0.5 - corners.min(0), 0) - 1e-6).astype(int)
    after = np.ceil(np.maximum(corners.max(0) + 0.5 - np.array(crop.shape), 0) - 1e-6).astype(int)
    padding = list(zip(before.tolist(), after.tolist(), strict=True))
    outside = np.pad(np.zeros(crop.shape, dtype=bool), padding, constant_values=True)
    return np.pad(crop, padding, constant_values=crop.min()), outside, before.astype(np.float64)


def outline(kind: str, mask: Bool) -> Markup:
    """Draw the border of the true pixels of a mask (rows, columns), with a dark rim beneath for contrast.

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
