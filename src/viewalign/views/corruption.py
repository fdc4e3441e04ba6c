"""Corruptions of a view that a network learns to undo: those of Models Genesis, cut-outs, and fusion of two volumes.

Models Genesis (Zhou et al., arXiv:2004.07882) expects intensities in [0, 1]; here views are z-scored, and intensity
changes work relative to the range of the view's valid voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.utils.precision import send
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views.intensity import valid_range

_MAX_CUTOUTS = 64


@dataclass(frozen=True)
class CorruptionConfig:
    """Probabilities of the corruptions of Models Genesis; the defaults are the published ones.

    Attributes:
        p_shuffle: of shuffling voxels within small boxes.
        p_nonlinear: of a non-linear intensity map.
        p_paint: of replacing a part by noise.
        p_outpaint: that this part is all but some boxes (out-painting) instead of some boxes (in-painting).
        shuffle_size: largest side of the boxes within which voxels are shuffled, relative to the view's.
    """

    p_shuffle: float = 0.5
    p_nonlinear: float = 0.9
    p_paint: float = 0.9
    p_outpaint: float = 0.8
    shuffle_size: float = 0.1


def corrupt(
    view: Tensor, valid: Tensor, config: CorruptionConfig, rng: np.random.Generator, noise: torch.Generator
) -> Tensor:
    """Corrupt a view (C, D, H, W), which stays 0 where `valid` (1, D, H, W) is false.

    Args:
        view, valid: on any device.
        config: which corruptions to apply.
        rng: the image's own generator, for all parameters.
        noise: for noise and permutations, on the view's device.
    """
    chance = rng.random(4)
    low, high = valid_range(view, valid)
    if chance[0] < config.p_shuffle:
        d, h, w = (int(rng.integers(1, max(2, int(n * config.shuffle_size)) + 1)) for n in spatial_size(view))
        view = local_shuffle(view, (d, h, w), noise)
    if chance[1] < config.p_nonlinear:
        view = nonlinear_intensity(view, low, high, rng)
    if chance[2] < config.p_paint:
        where = send(sample_painting(rng, spatial_size(view), bool(chance[3] < config.p_outpaint)), view.device)
        filling = torch.rand(view.shape, generator=noise, device=view.device, dtype=view.dtype)
        view = torch.where(where, low + (high - low) * filling, view)
    return view * valid


def local_shuffle(view: Tensor, box: Size, generator: torch.Generator) -> Tensor:
    """Permute the voxels of a view (C, D, H, W) within each box of a partition into boxes.

    The published form shuffles 10,000 random boxes one after another, about once over the whole view; a partition is
    shuffled by one sort, which takes milliseconds on a GPU.
    """
    size = spatial_size(view)
    axes = [torch.arange(n, device=view.device) // side for n, side in zip(size, box, strict=True)]
    counts = [-(-n // side) for n, side in zip(size, box, strict=True)]
    owner = ((axes[0][:, None, None] * counts[1] + axes[1][:, None]) * counts[2] + axes[2]).flatten()
    keys = torch.rand(owner.shape, generator=generator, device=view.device, dtype=torch.float64)
    source = torch.argsort(owner + keys)
    target = torch.argsort(owner, stable=True)
    flat = view.flatten(1)
    out = torch.empty_like(flat)
    out[:, target] = flat[:, source]
    return out.view_as(view)


def nonlinear_intensity(view: Tensor, low: Tensor, high: Tensor, rng: np.random.Generator) -> Tensor:
    """Map intensities in [low, high] by a random cubic Bézier curve."""
    xs, ys = bezier_curve(rng)
    extent = (high - low).clamp(min=1e-7)
    position = ((view - low) / extent).clamp(0, 1)
    curve = send(torch.from_numpy(np.interp(np.linspace(0, 1, 1024), xs, ys)).to(view.dtype), view.device)
    at = position * (len(curve) - 1)
    below = at.floor().long().clamp(max=len(curve) - 2)
    part = at - below
    return low + extent * (curve[below] * (1 - part) + curve[below + 1] * part)


def bezier_curve(rng: np.random.Generator, points: int = 1000) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sample a curve from (0, 0) to (1, 1) with two random control points; half of the curves are made monotone.

    Returns:
        (x ascending, y).
    """
    inner, monotone = rng.random((2, 2)), rng.random() < 0.5
    corners = np.concatenate([[[0.0, 0.0]], inner, [[1.0, 1.0]]])
    t = np.linspace(0, 1, points)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    x, y = (weights @ corners).T
    return np.sort(x), np.sort(y) if monotone else y


def sample_painting(rng: np.random.Generator, size: Size, outpaint: bool) -> Tensor:
    """Sample the voxels to replace, (D, H, W) bool: up to five boxes, or all but up to five larger boxes."""
    painted = np.full(size, outpaint)
    for number in range(5):
        if number and rng.random() >= 0.95:
            break
        fractions = rng.uniform(3 / 7, 4 / 7, 3) if outpaint else rng.uniform(1 / 6, 1 / 3, 3)
        sides = [max(1, round(n * fraction)) for n, fraction in zip(size, fractions, strict=True)]
        starts = [int(rng.integers(0, n - side + 1)) for n, side in zip(size, sides, strict=True)]
        painted[tuple(slice(a, a + side) for a, side in zip(starts, sides, strict=True))] = not outpaint
    return torch.from_numpy(painted)


def _sample_box(
    rng: np.random.Generator, size: Size, largest: float, smallest: Callable[[int], int]
) -> tuple[slice, ...]:
    """Sample a box whose sides are at most `largest` of the view's and at least `smallest` of that."""
    box = []
    for n in size:
        top = max(1, int(n * largest))
        side = int(rng.integers(smallest(top), top + 1))
        start = int(rng.integers(0, n - side + 1))
        box.append(slice(start, start + side))
    return tuple(box)


def sample_cutouts(rng: np.random.Generator, size: Size, fraction: float, largest: float) -> Tensor:
    """Sample boxes that cover at most `fraction` of a view, (D, H, W) bool.

    The covered fraction is uniform up to `fraction`; boxes are added until the next one would exceed it.

    Args:
        rng: the image's own generator.
        size: (D, H, W) of the view.
        fraction: of the view, at most.
        largest: longest side of a box, relative to the view's; the shortest is half of that.
    """
    covered = np.zeros(size, dtype=bool)
    limit = rng.uniform(0, fraction) * covered.size
    for _ in range(_MAX_CUTOUTS):
        box = _sample_box(rng, size, largest, lambda top: max(1, top // 2))
        if covered.sum() + int((~covered[box]).sum()) > limit:
            break
        covered[box] = True
    return torch.from_numpy(covered)


def sample_fusion_labels(
    rng: np.random.Generator, size: Size, levels: int = 4, blocks: tuple[int, int] = (10, 40), largest: float = 0.625
) -> Tensor:
    """Sample a label in [0, levels] per voxel, (D, H, W) int64, for `fuse`; 0 outside all boxes, later boxes on top.

    Each box has one of all labels, 0 too, which uncovers the background again.

    Args:
        rng: the image's own generator.
        size: (D, H, W) of the view.
        levels: number of non-zero labels.
        blocks: range of the number of boxes, [low, high).
        largest: longest side of a box, relative to the view's; the shortest is at most 8 voxels.
    """
    labels = np.zeros(size, dtype=np.int64)
    for _ in range(int(rng.integers(*blocks))):
        box = _sample_box(rng, size, largest, lambda top: min(8, top))
        labels[box] = rng.integers(0, levels + 1)
    return torch.from_numpy(labels)


def fuse(foreground: Tensor, background: Tensor, labels: Tensor, levels: int = 4) -> Tensor:
    """Return a·foreground + (1 - a)·background, a = label / levels; images (N, C, D, H, W), labels (N, D, H, W)."""
    alpha = (labels[:, None] / levels).to(foreground.dtype)
    return alpha * foreground + (1 - alpha) * background
