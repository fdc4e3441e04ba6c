"""Ways to spoil a view that a network shall restore: those of Models Genesis (Zhou et al., arXiv:2004.07882).

The originals expect intensities in [0, 1]. Views here are z-scored, so every change of intensity works on the range of
the view's valid voxels and is carried back. Each function takes a view (C, D, H, W) and the image's own generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.utils.precision import send

Size = tuple[int, int, int]


@dataclass(frozen=True)
class CorruptionConfig:
    """Probabilities of each change, as published.

    Attributes:
        p_shuffle: of shuffling voxels within small boxes.
        p_bend: of a non-linear map of intensities.
        p_paint: of painting over a part.
        p_outer: of painting over all but a part, given that something is painted.
        largest: side of the largest box within which voxels are shuffled, as a share of the view's.
    """

    p_shuffle: float = 0.5
    p_bend: float = 0.9
    p_paint: float = 0.9
    p_outer: float = 0.8
    largest: float = 0.1


def corrupt(
    view: Tensor, valid: Tensor, changes: CorruptionConfig, rng: np.random.Generator, noise: torch.Generator
) -> Tensor:
    """Spoil a view (C, D, H, W) of which `valid` (1, D, H, W) counts; what is not valid stays 0.

    Args:
        view, valid: on any device.
        changes: what may happen.
        rng: decides what happens.
        noise: fills and shuffles, on the view's device.
    """
    chance = rng.random(4)
    low, high = limits(view, valid)
    if chance[0] < changes.p_shuffle:
        view = shuffle(view, _box_size(view, changes.largest, rng), noise)
    if chance[1] < changes.p_bend:
        view = bend(view, low, high, rng)
    if chance[2] < changes.p_paint:
        where = send(boxes(rng, _size(view), outer=bool(chance[3] < changes.p_outer)), view.device)
        filling = torch.rand(view.shape, generator=noise, device=view.device, dtype=view.dtype)
        view = torch.where(where, low + (high - low) * filling, view)
    return view * valid


def limits(view: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest valid value (C, 1, 1, 1); 0 and 0 where nothing is valid."""
    low = torch.where(valid, view, torch.inf).amin((1, 2, 3), keepdim=True)
    high = torch.where(valid, view, -torch.inf).amax((1, 2, 3), keepdim=True)
    return torch.nan_to_num(low, posinf=0.0), torch.nan_to_num(high, neginf=0.0)


def _size(view: Tensor) -> Size:
    return (view.shape[1], view.shape[2], view.shape[3])


def _box_size(view: Tensor, largest: float, rng: np.random.Generator) -> Size:
    d, h, w = (int(rng.integers(1, max(2, int(n * largest)) + 1)) for n in _size(view))
    return (d, h, w)


def shuffle(view: Tensor, box: Size, generator: torch.Generator) -> Tensor:
    """Permute the voxels within each box of a partition of the view; the multiset of every box stays.

    The published form shuffles 10,000 boxes one after another, about once over the whole view; here all boxes of one
    partition are shuffled by a single sort, so that it costs milliseconds on a GPU.
    """
    size = _size(view)
    axes = [torch.arange(n, device=view.device) // side for n, side in zip(size, box, strict=True)]
    counts = [-(-n // side) for n, side in zip(size, box, strict=True)]
    owner = ((axes[0][:, None, None] * counts[1] + axes[1][:, None]) * counts[2] + axes[2]).flatten()
    keys = torch.rand(owner.shape, generator=generator, device=view.device, dtype=torch.float64)
    drawn = torch.argsort(owner + keys)
    places = torch.argsort(owner, stable=True)
    flat = view.flatten(1)
    out = torch.empty_like(flat)
    out[:, places] = flat[:, drawn]
    return out.view_as(view)


def bend(view: Tensor, low: Tensor, high: Tensor, rng: np.random.Generator) -> Tensor:
    """Map intensities along a cubic Bézier curve from corner to corner of the range [low, high]."""
    xs, ys = bezier(rng)
    extent = (high - low).clamp(min=1e-7)
    share = ((view - low) / extent).clamp(0, 1)
    curve = send(torch.from_numpy(np.interp(np.linspace(0, 1, 1024), xs, ys)).to(view.dtype), view.device)
    at = share * (len(curve) - 1)
    below = at.floor().long().clamp(max=len(curve) - 2)
    part = at - below
    return low + extent * (curve[below] * (1 - part) + curve[below + 1] * part)


def bezier(rng: np.random.Generator, points: int = 1000) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw a curve from (0, 0) to (1, 1) with two free control points; half of them are made monotone.

    Returns:
        (x ascending, y).
    """
    inner, monotone = rng.random((2, 2)), rng.random() < 0.5
    corners = np.concatenate([[[0.0, 0.0]], inner, [[1.0, 1.0]]])
    t = np.linspace(0, 1, points)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    x, y = (weights @ corners).T
    return np.sort(x), np.sort(y) if monotone else y


def boxes(rng: np.random.Generator, size: Size, outer: bool) -> Tensor:
    """Draw what is painted over, (D, H, W) bool: up to five boxes, or with `outer` all but up to five larger ones."""
    painted = np.full(size, outer)
    for number in range(5):
        if number and rng.random() >= 0.95:
            break
        share = rng.uniform(3 / 7, 4 / 7, 3) if outer else rng.uniform(1 / 6, 1 / 3, 3)
        place = []
        for n, part in zip(size, share, strict=True):
            side = max(1, round(n * part))
            start = int(rng.integers(0, n - side + 1))
            place.append(slice(start, start + side))
        painted[tuple(place)] = not outer
    return torch.from_numpy(painted)


_MOST = 64


def sample_cutout_boxes(rng: np.random.Generator, size: Size, share: float, largest: float) -> Tensor:
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


def sample_fusion_labels(
    rng: np.random.Generator, size: Size, levels: int = 4, blocks: tuple[int, int] = (10, 40), largest: float = 0.625
) -> Tensor:
    """Draw the label of each voxel, (D, H, W) int64 in [0, levels]: 0 outside all boxes, later ones on top.

    Args:
        rng: the image's own generator.
        size: of the view.
        levels: how many shares of the foreground there are besides 0.
        blocks: how many boxes, [low, high).
        largest: the longest side of a box as a share of the view's; the shortest is 8 voxels, or that if it is less.
    """
    labels = np.zeros(size, dtype=np.int64)
    for _ in range(int(rng.integers(*blocks))):
        place = []
        for n in size:
            top = max(1, int(n * largest))
            side = int(rng.integers(min(8, top), top + 1))
            start = int(rng.integers(0, n - side + 1))
            place.append(slice(start, start + side))
        labels[tuple(place)] = rng.integers(1, levels + 1)
    return torch.from_numpy(labels)


def fuse(front: Tensor, back: Tensor, labels: Tensor, levels: int = 4) -> Tensor:
    """Return a·front + (1 - a)·back with a = label / levels; images (N, C, D, H, W), labels (N, D, H, W)."""
    share = (labels[:, None] / levels).to(front.dtype)
    return share * front + (1 - share) * back
