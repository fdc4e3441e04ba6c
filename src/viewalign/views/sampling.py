"""Random geometry of views: pairs with a known overlap in a shared frame, or single views.

Overlaps are sampled as whole voxels and everything else follows from them; the resulting affines describe the views
exactly. The overlap is sampled as in Vaish et al., arXiv:2509.13846, with a random sign per axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.utils.shapes import Size
from viewalign.views import lattice

Vector = NDArray[np.float64]
Voxels = NDArray[np.int64]
Spacing = tuple[float, float, float]
"""Voxel size in mm along (D, H, W)."""
ISOTROPIC: Spacing = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class ViewSamplingConfig:
    """Distribution of the geometry of views; probabilities and ranges are those of `ViewSettings`.

    Attributes:
        size: (D, H, W) of a view in voxels.
        overlap: range of the fraction of a view that a pair shares.
        mirror: whether each axis is flipped with probability 1/2.
        p_rotation, rotation_degrees: probability of a rotation, and the largest angle about each axis.
        p_scale, scale: probability of scaling, and the range of the factor.
        independent: whether each view of a pair is also flipped, rotated and scaled independently.
    """

    size: Size
    overlap: tuple[float, float] = (0.4, 0.8)
    mirror: bool = True
    p_rotation: float = 0.2
    rotation_degrees: float = 30.0
    p_scale: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)
    independent: bool = False


@dataclass(frozen=True)
class LocalViews:
    """Additional views of another size: affines (L, 3, 4) float64 and (D, H, W) in voxels."""

    to_volume: Tensor
    size: Size


@dataclass(frozen=True)
class SampledViews:
    """Geometry of the views of one volume.

    Attributes:
        to_volume: (V, 3, 4) float64, from voxel indices of a view to voxel indices of the volume.
        overlap: fraction of a view that both views of a pair cover; larger than sampled if the volume is too small
            for it. 1 for single views.
        local: views of another size, for methods that use them.
    """

    to_volume: Tensor
    overlap: float
    local: LocalViews | None = field(default=None, kw_only=True)


ViewSampler = Callable[[np.random.Generator, Size, ViewSamplingConfig, Spacing], SampledViews]
"""Samples the views of a volume from a generator, the volume's shape, a config, and the volume's spacing."""


def sample_pair(
    rng: np.random.Generator, shape: Size, config: ViewSamplingConfig, spacing: Spacing = ISOTROPIC
) -> SampledViews:
    """Sample two overlapping views of a volume.

    Args:
        rng: the sample's own generator.
        shape: (D, H, W) of the volume in voxels.
        config: distribution of the geometry.
        spacing: voxel size of the volume in mm; rotations are rigid in mm.

    Example:
        >>> config = ViewSamplingConfig(size=(64, 64, 64))
        >>> sample_pair(np.random.default_rng(0), (160, 192, 160), config).to_volume.shape
        torch.Size([2, 3, 4])
    """
    size = np.array(config.size)
    frame, zoom = sample_frame(rng, config, spacing)
    common = _sample_overlap(rng, size, config.overlap)
    available = np.maximum(np.floor((np.array(shape) - 1) / zoom).astype(np.int64) + 1 - size, 0)
    shift = np.minimum(size - common, available)
    forward = rng.random(3) < 0.5
    starts = np.stack([np.where(forward, 0, shift), np.where(forward, shift, 0)])
    union = _place_box(rng, frame, size + shift, np.array(shape), zoom)
    if config.independent:
        return _transform_each(rng, union, starts, config, spacing)
    to_volume = np.stack([np.column_stack([frame, union[:, :3] @ start + union[:, 3]]) for start in starts])
    return SampledViews(torch.from_numpy(to_volume), float(np.prod((size - shift) / size)))


def sample_one(
    rng: np.random.Generator, shape: Size, config: ViewSamplingConfig, spacing: Spacing = ISOTROPIC
) -> SampledViews:
    """Sample one view of a volume; arguments as for `sample_pair`."""
    return SampledViews(sample_affine(rng, shape, config, spacing)[None], 1.0)


def sample_affine(
    rng: np.random.Generator, shape: Size, config: ViewSamplingConfig, spacing: Spacing = ISOTROPIC
) -> Tensor:
    """Sample the affine (3, 4) of one view; arguments as for `sample_pair`."""
    frame, zoom = sample_frame(rng, config, spacing)
    return torch.from_numpy(_place_box(rng, frame, np.array(config.size), np.array(shape), zoom))


def sample_frame(rng: np.random.Generator, config: ViewSamplingConfig, spacing: Spacing) -> tuple[Vector, float]:
    """Sample flips, scale and rotation of a view; returns the linear map (3, 3) to the volume and the scale.

    All numbers are sampled even if they are not used, so that changing one setting does not change the others.
    """
    flips = np.where(rng.random(3) < 0.5, -1.0, 1.0) if config.mirror else np.ones(3)
    angles = np.radians(rng.uniform(-config.rotation_degrees, config.rotation_degrees, 3))
    zoom = float(np.exp(rng.uniform(*np.log(config.scale))))
    rotate, scale = rng.random() < config.p_rotation, rng.random() < config.p_scale
    zoom = zoom if scale else 1.0
    frame = np.diag(flips) * zoom
    if rotate:
        millimetres = np.diag(spacing)
        frame = np.linalg.inv(millimetres) @ _rotation(angles) @ millimetres @ frame
    return frame, zoom


def _rotation(angles: Vector) -> Vector:
    """Return the rotation matrix of three angles in radians, about axes 0, 1 and 2 in turn."""
    product = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        product = turn @ product
    return product


def _sample_overlap(rng: np.random.Generator, size: Voxels, fractions: tuple[float, float]) -> Voxels:
    """Sample the shared voxels per axis: a volume fraction, split over axes by exponents from Dirichlet(1, 1, 1)."""
    fraction = rng.uniform(*fractions)
    exponents = rng.dirichlet(np.ones(3))
    shared: Voxels = np.clip(np.rint(fraction**exponents * size), 1, size).astype(np.int64)
    return shared


def _place_box(rng: np.random.Generator, frame: Vector, extent: Voxels, shape: Voxels, zoom: float) -> Vector:
    """Return the affine (3, 4) of a box of `extent` voxels at a random position in the volume.

    A box larger than the volume on an axis covers all of it there. Positions are those of the box before rotation, so
    corners of a rotated box may leave the volume.
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


def _transform_each(
    rng: np.random.Generator, union: Vector, starts: Voxels, config: ViewSamplingConfig, spacing: Spacing
) -> SampledViews:
    """Flip, rotate and scale each view about its own centre."""
    middle = (np.array(config.size) - 1) / 2
    maps = []
    for start in starts:
        centre = union[:, :3] @ (start + middle) + union[:, 3]
        frame, _ = sample_frame(rng, config, spacing)
        maps.append(np.column_stack([frame, centre - frame @ middle]))
    to_volume = torch.from_numpy(np.stack(maps))
    return SampledViews(to_volume, lattice.overlap_fraction(to_volume, config.size))
