"""Where views lie: a shared frame and two boxes of known overlap in it, or a frame for each view.

Overlaps are whole voxels first; every other number follows from them (design §3.1). The affines that come out are the
whole truth about the views. The overlap sampler follows Vaish et al., arXiv:2509.13846, with a random sign per axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.views import lattice

Vector = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class ViewSamplingConfig:
    """What is drawn at random about the geometry of a pair of views; probabilities and ranges as in `ViewSettings`."""

    size: tuple[int, int, int]
    overlap: tuple[float, float] = (0.4, 0.8)
    mirror: bool = True
    p_rotation: float = 0.2
    rotation_degrees: float = 30.0
    p_scale: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)
    independent: bool = False


@dataclass(frozen=True)
class LocalView:
    """Further views of a volume, of another size than the rest.

    Attributes:
        to_volume: (L, 3, 4) float64, as those of `Drawn`.
        size: their (D, H, W) in voxels.
    """

    to_volume: Tensor
    size: tuple[int, int, int]


@dataclass(frozen=True)
class SampledViews:
    """Views drawn of one volume.

    Attributes:
        to_volume: (V, 3, 4) float64, from a view's voxel index to the volume's voxel index.
        overlap: the share of a view's volume that a pair of views covers both, after every shift that had to shrink;
            1 where there is no pair.
        local: views of another size, where a method has any.
    """

    to_volume: Tensor
    overlap: float
    local: LocalView | None = field(default=None, kw_only=True)


ViewSampler = Callable[
    [np.random.Generator, tuple[int, int, int], ViewSamplingConfig, tuple[float, float, float]], SampledViews
]
"""Draws the views of a volume of some shape and spacing: `draw_pair`, `draw_one`, or another method's way."""


def sample_pair(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    drawing: ViewSamplingConfig,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> SampledViews:
    """Draw two views of a volume.

    Args:
        rng: the sample's own generator.
        shape: the volume's (D, H, W) in voxels.
        drawing: what may be drawn.
        spacing: the volume's voxel size in mm, so that a rotation is rigid in the body and not in voxels.
    """
    size = np.array(drawing.size)
    frame, zoom = _draw_frame(rng, drawing, spacing)
    common = _draw_overlap(rng, size, drawing.overlap)
    room = np.maximum(np.floor((np.array(shape) - 1) / zoom).astype(np.int64) + 1 - size, 0)
    shift = np.minimum(size - common, room)
    forward = rng.random(3) < 0.5
    starts = np.stack([np.where(forward, 0, shift), np.where(forward, shift, 0)])
    union = _place(rng, frame, size + shift, np.array(shape), zoom)
    if drawing.independent:
        return _turn_each(rng, union, starts, drawing, spacing)
    to_volume = np.stack([np.column_stack([frame, union[:, :3] @ start + union[:, 3]]) for start in starts])
    return SampledViews(torch.from_numpy(to_volume), float(np.prod((size - shift) / size)))


def sample_one(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    drawing: ViewSamplingConfig,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> SampledViews:
    """Draw one view of a volume, for methods that compare nothing across views."""
    return SampledViews(sample_single(rng, shape, drawing, spacing)[None], 1.0)


def sample_single(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    drawing: ViewSamplingConfig,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Draw the affine (3, 4) of one view alone, by the same rules."""
    frame, zoom = _draw_frame(rng, drawing, spacing)
    return torch.from_numpy(_place(rng, frame, np.array(drawing.size), np.array(shape), zoom))


def _draw_frame(
    rng: np.random.Generator, drawing: ViewSamplingConfig, spacing: tuple[float, float, float]
) -> tuple[Vector, float]:
    """Draw mirror, scale and rotation; every number is drawn whether it is used or not, so draws stay comparable."""
    flips = np.where(rng.random(3) < 0.5, -1.0, 1.0) if drawing.mirror else np.ones(3)
    angles = np.radians(rng.uniform(-drawing.rotation_degrees, drawing.rotation_degrees, 3))
    zoom = float(np.exp(rng.uniform(*np.log(drawing.scale))))
    turned, zoomed = rng.random() < drawing.p_rotation, rng.random() < drawing.p_scale
    zoom = zoom if zoomed else 1.0
    frame = np.diag(flips) * zoom
    if turned:
        millimetres = np.diag(spacing)
        frame = np.linalg.inv(millimetres) @ _rotation(angles) @ millimetres @ frame
    return frame, zoom


def _rotation(angles: Vector) -> Vector:
    """Return the rotation by three angles (radians), one about each axis in turn."""
    product = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        product = turn @ product
    return product


def _draw_overlap(rng: np.random.Generator, size: Whole, fractions: tuple[float, float]) -> Whole:
    """Draw the voxels shared per axis: a volume fraction, split over axes by exponents from Dirichlet(1, 1, 1)."""
    fraction = rng.uniform(*fractions)
    exponents = rng.dirichlet(np.ones(3))
    shared: Whole = np.clip(np.rint(fraction**exponents * size), 1, size).astype(np.int64)
    return shared


def _place(rng: np.random.Generator, frame: Vector, extent: Whole, shape: Whole, zoom: float) -> Vector:
    """Return the affine (3, 4) of a box of `extent` voxels in the frame, put at random into the volume.

    A box that is larger than the volume on an axis holds all of it there. The room is that of the box before
    rotation, so corners of a rotated box may leave the volume.
    """
    if zoom == 1.0 and np.count_nonzero(frame) == 3:
        low = np.minimum(shape - extent, 0)
        corner = rng.integers(low, np.maximum(shape - extent, 0) + 1).astype(np.float64)
        shift = np.where(np.diag(frame) > 0, corner, corner + extent - 1)
    else:
        half = zoom * (extent - 1) / 2
        ends = np.stack([half, shape - 1 - half])
        shift = rng.uniform(ends.min(0), ends.max(0)) - frame @ ((extent - 1) / 2)
    return np.column_stack([frame, shift])


def _turn_each(
    rng: np.random.Generator,
    union: Vector,
    starts: Whole,
    drawing: ViewSamplingConfig,
    spacing: tuple[float, float, float],
) -> SampledViews:
    """Give each view a frame of its own about its own centre, on top of the shared one."""
    middle = (np.array(drawing.size) - 1) / 2
    maps = []
    for start in starts:
        centre = union[:, :3] @ (start + middle) + union[:, 3]
        frame, _ = _draw_frame(rng, drawing, spacing)
        maps.append(np.column_stack([frame, centre - frame @ middle]))
    to_volume = torch.from_numpy(np.stack(maps))
    return SampledViews(to_volume, lattice.shared_fraction(to_volume, drawing.size))
