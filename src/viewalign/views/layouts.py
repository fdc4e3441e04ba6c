"""Layouts of more than two views: a grid with random targets (VoCo), and local views in large ones (PCRLv2, DINO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from viewalign.utils.shapes import Size
from viewalign.views import affines, lattice
from viewalign.views.sampling import (
    ISOTROPIC,
    LocalViews,
    SampledViews,
    Spacing,
    Vector,
    ViewSamplingConfig,
    Voxels,
    sample_affine,
    sample_frame,
)

_MAX_TRIES = 50


def sample_grid(
    rng: np.random.Generator,
    shape: Size,
    config: ViewSamplingConfig,
    spacing: Spacing = ISOTROPIC,
    grid: Size = (1, 4, 4),
    targets: int = 4,
) -> SampledViews:
    """Sample `targets` views at random positions in a region, then the views that tile it, in raster order.

    This is the layout of VoCo (Wu et al., arXiv:2402.17300). All views have one frame, so that the overlap of a target
    with a tile is that of two axis-aligned boxes (`box_overlaps`).

    Args:
        rng, shape, config, spacing: as for `sample_pair`.
        grid: number of tiles along (D, H, W).
        targets: number of views at random whole voxels of the region.
    """
    size = np.array(config.size)
    region = (size * np.array(grid)).tolist()
    frame = sample_affine(rng, shape, replace(config, size=(region[0], region[1], region[2])), spacing)
    free = rng.integers(0, np.array(region) - size + 1, (targets, 3))
    tiles = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 3) * size
    starts = torch.from_numpy(np.concatenate([free, tiles]).astype(np.float64))
    shift = affines.apply(frame, starts)
    return SampledViews(torch.cat([frame[None, :, :3].expand(len(starts), 3, 3), shift[:, :, None]], dim=2), 1.0)


def box_overlaps(to_volume: Tensor, size: Size, targets: int) -> Tensor:
    """Return the fraction of each target that lies in each tile, (B, targets, tiles) float64 in [0, 1].

    Args:
        to_volume: (V, B, 3, 4) of views from `sample_grid`, targets first.
        size: (D, H, W) of a view in voxels.
        targets: number of target views.
    """
    inverse = affines.invert(to_volume[targets])
    starts = torch.stack([affines.compose(inverse, view)[..., 3] for view in to_volume], dim=1)
    extent = torch.tensor(size, dtype=torch.float64)
    distance = (starts[:, :targets, None] - starts[:, None, targets:]).abs()
    return ((extent - distance).clamp(min=0) / extent).prod(-1)


@dataclass(frozen=True)
class NestedViewConfig:
    """Sizes of large and local views, whose boxes are resampled to the sizes of the views.

    Attributes:
        region: side of the region that contains all boxes, relative to a large view.
        extent: range of the side of a large view's box, relative to the view.
        min_iou: smallest intersection over union of the two large boxes.
        locals: number of local views, alternately in the first and the second large box.
        local_size: (D, H, W) of a local view in voxels.
        local_extent: range of the side of a local view's box, relative to the view.
    """

    region: float = 1.41
    extent: tuple[float, float] = (0.75, 1.25)
    min_iou: float = 0.3
    locals: int = 6
    local_size: Size = (64, 64, 64)
    local_extent: tuple[float, float] = (0.5, 1.0)


@dataclass(frozen=True)
class Box:
    """Voxels [low, low + sides) of the region."""

    low: Voxels
    sides: Voxels


def sample_nested(
    rng: np.random.Generator,
    shape: Size,
    config: ViewSamplingConfig,
    spacing: Spacing = ISOTROPIC,
    nesting: NestedViewConfig | None = None,
) -> SampledViews:
    """Sample two large views and the local views inside them: the layout of PCRLv2 (Zhou et al., arXiv:2301.00772).

    All boxes are aligned in one frame; each view is flipped independently, which does not move its box.

    Args:
        rng, shape, config, spacing: as for `sample_pair`.
        nesting: sizes of boxes; None uses the published ones.
    """
    nesting = nesting or NestedViewConfig()
    size = np.array(config.size)
    sides = np.rint(size * nesting.region).astype(np.int64)
    region = (int(sides[0]), int(sides[1]), int(sides[2]))
    frame = sample_affine(rng, shape, replace(config, size=region, mirror=False), spacing)
    large = _sample_large(rng, size, sides, nesting)
    local_size = np.array(nesting.local_size)
    small = [_sample_box(rng, large[k % 2], local_size, nesting.local_extent) for k in range(nesting.locals)]
    views = _box_affines(rng, frame, large, config.size, config.mirror)
    local = None
    if small:
        local = LocalViews(_box_affines(rng, frame, small, nesting.local_size, config.mirror), nesting.local_size)
    return SampledViews(views, lattice.overlap_fraction(views, config.size), local=local)


def _sample_large(rng: np.random.Generator, size: Voxels, region: Voxels, nesting: NestedViewConfig) -> tuple[Box, Box]:
    """Sample two boxes of at least `min_iou`; returns the first box twice if no second one is found."""
    whole = Box(np.zeros(3, dtype=np.int64), region)
    first = _sample_box(rng, whole, size, nesting.extent)
    for _ in range(_MAX_TRIES):
        second = _sample_box(rng, whole, size, nesting.extent)
        if iou(first, second) >= nesting.min_iou:
            return first, second
    return first, first


def _sample_box(rng: np.random.Generator, within: Box, size: Voxels, extent: tuple[float, float]) -> Box:
    """Sample a box of `size` times one random factor at a random position within another box."""
    sides = np.clip(np.rint(size * rng.uniform(*extent)), 1, within.sides).astype(np.int64)
    return Box(within.low + rng.integers(0, within.sides - sides + 1), sides)


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    shared = np.minimum(a.low + a.sides, b.low + b.sides) - np.maximum(a.low, b.low)
    both = float(np.clip(shared, 0, None).prod())
    return both / float(a.sides.prod() + b.sides.prod() - both)


def _box_affines(rng: np.random.Generator, frame: Tensor, boxes: Sequence[Box], size: Size, mirror: bool) -> Tensor:
    """Return the affines (V, 3, 4) of views of `size` voxels, each of which covers its box."""
    maps = []
    for box in boxes:
        step = torch.from_numpy(box.sides / np.array(size))
        low = torch.from_numpy(box.low.astype(np.float64)) + step / 2 - 0.5
        flip = torch.from_numpy(rng.random(3) < 0.5) & mirror
        linear = torch.where(flip, -step, step)
        shift = torch.where(flip, low + step * (torch.tensor(size) - 1), low)
        maps.append(torch.cat([torch.diag(linear), shift[:, None]], dim=1))
    return affines.compose(frame.expand(len(maps), 3, 4), torch.stack(maps))


@dataclass(frozen=True)
class MultiCropConfig:
    """Sizes of global and local crops.

    Attributes:
        region: side of the region that contains the global crops, relative to a global view.
        extent: range of the scale of a global crop: voxels of the volume per voxel of the view.
        locals: number of local crops, alternately in the first and the second global crop.
        local_size: (D, H, W) of a local view in voxels.
        local_extent: range of the scale of a local crop.
    """

    region: float = 1.25
    extent: tuple[float, float] = (0.75, 1.25)
    locals: int = 8
    local_size: Size = (64, 64, 64)
    local_extent: tuple[float, float] = (0.5, 1.0)


def sample_multi_crop(
    rng: np.random.Generator,
    shape: Size,
    config: ViewSamplingConfig,
    spacing: Spacing = ISOTROPIC,
    crops: MultiCropConfig | None = None,
) -> SampledViews:
    """Sample two global views and the local views inside them: the layout of DINO (Caron et al., arXiv:2104.14294).

    Each crop is flipped, rotated and scaled about its own centre, with the probabilities of `config`; before its own
    rotation it lies inside the region or global crop that contains it. `config.scale` applies to the region, and so to
    all crops of a volume.

    Args:
        rng, shape, config, spacing: as for `sample_pair`.
        crops: sizes; None uses the defaults.
    """
    crops = crops or MultiCropConfig()
    size = np.array(config.size)
    sides = np.rint(size * crops.region).astype(np.int64)
    plain = replace(config, size=(int(sides[0]), int(sides[1]), int(sides[2])), mirror=False, p_rotation=0.0)
    region = sample_affine(rng, shape, plain, spacing).numpy()
    zoom = float(region[0, 0])

    def crop(within: Vector, sides: Voxels, size: Voxels, extent: tuple[float, float]) -> Vector:
        frame, scale = sample_frame(rng, replace(config, p_scale=1.0, scale=extent), spacing)
        return _place_inside(rng, within, sides, zoom * frame, zoom * scale, size)

    large = [crop(region, sides, size, crops.extent) for _ in range(2)]
    local_size = np.array(crops.local_size)
    small = [crop(large[k % 2], size, local_size, crops.local_extent) for k in range(crops.locals)]
    views = torch.from_numpy(np.stack(large))
    local = LocalViews(torch.from_numpy(np.stack(small)), crops.local_size)
    return SampledViews(views, lattice.overlap_fraction(views, config.size), local=local)


def _place_inside(
    rng: np.random.Generator, within: Vector, sides: Voxels, frame: Vector, scale: float, size: Voxels
) -> Vector:
    """Return the affine (3, 4) of a view of `size` voxels at a random position in another one of `sides` voxels.

    Args:
        rng: of the sample.
        within: affine of the other view.
        sides: of the other view.
        frame: linear map (3, 3) of the view.
        scale: of the view, which bounds its distance from the other one's border; a larger view has the same centre.
        size: of the view.
    """
    other = float(abs(np.linalg.det(within[:, :3]))) ** (1 / 3)
    reach = np.maximum(sides - scale / other * size, 0) / 2
    centre = within[:, :3] @ ((sides - 1) / 2 + rng.uniform(-1, 1, 3) * reach) + within[:, 3]
    return np.column_stack([frame, centre - frame @ ((size - 1) / 2)])
