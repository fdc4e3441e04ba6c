"""Sample i of a run: which volume, which views, and the one box of voxels that all of them need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from viewalign.errors import ExcludedImageError
from viewalign.utils.rng import make_rng
from viewalign.views import affines, lattice
from viewalign.views.latentcampus import LatentCampusPair
from viewalign.views.sampling import LocalView, SampledViews, ViewSampler, ViewSamplingConfig, sample_pair

Size = tuple[int, int, int]
_SUBSTITUTES = 20
"""How many other volumes are tried when one cannot be read, before the run is stopped."""


class VolumeSource(Protocol):
    """What sampling needs of a store; `volumes.store.Store` is one."""

    def __len__(self) -> int:
        """Return the number of volumes."""

    def shape(self, k: int) -> Size:
        """Return (D, H, W) in voxels."""

    def spacing(self, k: int) -> tuple[float, float, float]:
        """Return the voxel size in mm."""

    def foreground_threshold(self, k: int) -> float:
        """Return the value above which a voxel is foreground."""

    def read(self, k: int, start: Size, stop: Size) -> NDArray[np.float32]:
        """Return the voxels (C, d, h, w) of a box."""

    def read_mask(self, k: int, kind: str, start: Size, stop: Size) -> NDArray[np.bool_] | None:
        """Return the mask (d, h, w) of a box, or None where the volume has none."""


@dataclass(frozen=True)
class Sample:
    """One volume's share of a batch, as a loader's worker hands it over.

    Attributes:
        index: the sample's number in the run.
        crop: (C, d, h, w) float32, the box that holds all its views.
        hidden: (1, d, h, w) bool, true inside an anonymisation mask, or None.
        start: where the box begins in the volume, in voxels.
        shape: the volume's (D, H, W).
        to_volume: (V, 3, 4) float64.
        overlap: the share of a view that both views cover.
        volume_id, subject_id: numbers in the store.
        spacing: the volume's voxel size in mm.
        refused: volumes that were tried before and could not be read, with the reason.
        claimed: (V, 2, 3), the boxes that released geometry claims; None for exact views.
        local: views of another size, or None.
    """

    index: int
    crop: Tensor
    hidden: Tensor | None
    start: Size
    shape: Size
    to_volume: Tensor
    overlap: float
    volume_id: int
    subject_id: int
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    excluded: tuple[tuple[int, str], ...] = ()
    claimed: Tensor | None = None
    local: LocalView | None = None

    def pin_memory(self) -> Sample:
        """Return the sample with its voxels in page-locked memory, from which copies to a GPU need no wait."""
        hidden = None if self.hidden is None else self.hidden.pin_memory()
        return replace(self, crop=self.crop.pin_memory(), hidden=hidden)


class SampleReader(Dataset[Sample]):
    """Reads sample i of a run; every number it draws is a function of (seed, i).

    Args:
        source: the volumes.
        subjects: each volume's subject number.
        chosen: the volumes to draw from (training or validation).
        drawing: how views are drawn.
        batch: volumes in a global batch, drawn together without replacement.
        seed: the run's seed.
        purpose: keeps the draws of training and validation apart.
        min_foreground, redraws: views with less foreground are drawn again, at most so often; the best is kept.
        draw: draws the views of a volume.
        weights: how often each chosen volume is drawn, relative to the others; None draws all alike.
    """

    def __init__(
        self,
        source: VolumeSource,
        subjects: NDArray[np.int64],
        chosen: NDArray[np.int64],
        drawing: ViewSamplingConfig,
        batch: int,
        seed: int,
        purpose: str = "train",
        min_foreground: float = 0.1,
        redraws: int = 8,
        draw: ViewSampler = sample_pair,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if weights is not None:
            chosen, weights = chosen[weights > 0], weights[weights > 0]
        self._source, self._subjects, self._chosen = source, subjects, chosen
        self._drawing, self._batch, self._seed, self._purpose = drawing, batch, seed, purpose
        self._min_foreground, self._redraws, self._draw = min_foreground, redraws, draw
        self._weights = weights
        self._ends = None if weights is None else np.cumsum(weights)

    def __getitem__(self, index: int) -> Sample:
        """Read sample `index`; a volume that cannot be read is replaced by another and reported in the sample."""
        excluded: list[tuple[int, str]] = []
        volume = self.volume_of(index)
        for attempt in range(_SUBSTITUTES):
            try:
                return self._read(index, volume, attempt, tuple(excluded))
            except ExcludedImageError as problem:
                excluded.append((volume, str(problem)))
                rng = make_rng(self._seed, index, attempt, self._purpose, "substitute")
                volume = int(rng.choice(self._chosen) if self._ends is None else self._chosen[self._places(rng, 1)[0]])
        raise ExcludedImageError(f"{_SUBSTITUTES} volumes in a row cannot be read; the last: {excluded[-1][1]}")

    def volume_of(self, index: int) -> int:
        """Return the volume that sample `index` shows, before any substitution."""
        step, slot = divmod(index, self._batch)
        return int(self._draw_volumes(step)[slot])

    def _draw_volumes(self, step: int) -> NDArray[np.int64]:
        """Draw a global batch of volumes: of different subjects as far as there are any, else different volumes."""
        rng = make_rng(self._seed, step, self._purpose, "volumes")
        order = self._candidates(rng)
        _, first = np.unique(self._subjects[order], return_index=True)
        strangers = np.zeros(len(order), dtype=bool)
        strangers[first] = True
        order = np.concatenate([order[strangers], order[~strangers]])
        repeats = -(-self._batch // len(order))
        return np.tile(order, repeats)[: self._batch]

    def _candidates(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Shuffle the volumes; of very many, take a few in random order, which costs the same for any store."""
        few = 64 * self._batch
        if len(self._chosen) <= few:
            if self._weights is None:
                return rng.permutation(self._chosen)
            # Exponential clocks: the order in which they ring draws without replacement by weight.
            return self._chosen[np.argsort(rng.exponential(size=len(self._chosen)) / self._weights)]
        drawn = self._places(rng, few)
        _, first = np.unique(drawn, return_index=True)
        return self._chosen[drawn[np.sort(first)]]

    def _places(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Draw places among the chosen volumes, with replacement."""
        if self._ends is None:
            return np.asarray(rng.choice(len(self._chosen), size=count))
        places = np.searchsorted(self._ends, rng.random(count) * self._ends[-1], side="right")
        return np.asarray(np.minimum(places, len(self._chosen) - 1), dtype=np.int64)

    def _read(self, index: int, volume: int, attempt: int, excluded: tuple[tuple[int, str], ...]) -> Sample:
        shape, spacing = self._source.shape(volume), self._source.spacing(volume)
        best: tuple[float, Sample] | None = None
        for redraw in range(self._redraws + 1):
            rng = make_rng(self._seed, index, attempt, redraw, self._purpose, "views")
            drawn = self._draw(rng, shape, self._drawing, spacing)
            start, stop = self._box(drawn, shape)
            crop = torch.from_numpy(self._source.read(volume, start, stop))
            sample = Sample(
                index=index,
                crop=crop,
                hidden=None,
                start=start,
                shape=shape,
                to_volume=drawn.to_volume,
                overlap=drawn.overlap,
                volume_id=volume,
                subject_id=int(self._subjects[volume]),
                spacing=spacing,
                excluded=excluded,
                claimed=drawn.claimed if isinstance(drawn, LatentCampusPair) else None,
                local=drawn.local,
            )
            score = self._score(sample)
            if best is None or score > best[0]:
                best = (score, sample)
            if score >= self._min_foreground:
                break
        assert best is not None
        return self._with_mask(best[1])

    def _box(self, drawn: SampledViews, shape: Size) -> tuple[Size, Size]:
        """Return the box that all views need, those of another size included."""
        start, stop = enclosing_box(drawn.to_volume, self._drawing.size, shape)
        if drawn.local is None:
            return start, stop
        low, high = enclosing_box(drawn.local.to_volume, drawn.local.size, shape)
        a, b = np.minimum(start, low).tolist(), np.maximum(stop, high).tolist()
        return (a[0], a[1], a[2]), (b[0], b[1], b[2])

    def _score(self, sample: Sample) -> float:
        """Return how much foreground views hold: one view's share, the smaller of a pair's, the mean of more.

        A pair that shares under a quarter of its lattice scores 0. Of many views, such as a grid that covers a region,
        some may lie outside the body.
        """
        size = self._drawing.size
        maps = sample.to_volume
        threshold = self._source.foreground_threshold(sample.volume_id)
        shares = [_foreground(sample, k, size, threshold) for k in range(maps.shape[0])]
        if maps.shape[0] != 2:
            return sum(shares) / len(shares)
        points = lattice.between(maps[:1], maps[1:2], size, (4, 4, 4), 1).points
        top = torch.tensor(sample.shape, dtype=torch.float64) - 1
        common = lattice.inside(points, maps[1:2], size) & ((points >= 0) & (points <= top)).all(-1)
        if common.double().mean() < 0.25:
            return 0.0
        return min(shares)

    def _with_mask(self, sample: Sample) -> Sample:
        shape = sample.crop.shape[1:]
        stop = (sample.start[0] + shape[0], sample.start[1] + shape[1], sample.start[2] + shape[2])
        hidden = self._source.read_mask(sample.volume_id, "anonymisation", sample.start, stop)
        if hidden is None:
            return sample
        return replace(sample, hidden=torch.from_numpy(hidden)[None])


def _foreground(sample: Sample, number: int, size: Size, threshold: float) -> float:
    """Return the share of a view's voxels that are foreground, from an 8 x 8 x 8 lattice of them."""
    axes = [torch.linspace(0, n - 1, 8, dtype=torch.float64).round() for n in size]
    where = affines.apply(sample.to_volume[number], torch.cartesian_prod(*axes)).round().long()
    where = where - torch.tensor(sample.start)
    extent = torch.tensor(sample.crop.shape[1:])
    held = ((where >= 0) & (where < extent)).all(-1)
    d, h, w = where[held].unbind(-1)
    return float((sample.crop[0, d, h, w] > threshold).sum()) / len(where)


def enclosing_box(to_volume: Tensor, size: Size, shape: Size) -> tuple[Size, Size]:
    """Return the smallest box (start, stop) of whole voxels that interpolating all views (V, 3, 4) reads from."""
    ends = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in size))
    corners = affines.apply(to_volume, ends.expand(to_volume.shape[0], 8, 3)).flatten(0, 1)
    top = torch.tensor(shape)
    low = (corners.amin(0) + 1e-6).floor().long().clamp(min=0)
    high = (corners.amax(0) - 1e-6).ceil().long() + 1
    start = torch.minimum(low, top - 1)
    stop = torch.minimum(torch.maximum(high, start + 1), top)
    a, b = start.tolist(), stop.tolist()
    return (a[0], a[1], a[2]), (b[0], b[1], b[2])


class StepSampler(Sampler[list[int]]):
    """Yields the sample numbers of each step for one process: i = step x global batch + slot.

    Args:
        first, last: steps [first, last).
        batch: the global batch.
        rank, world: this process and how many there are; each takes an equal run of slots.
    """

    def __init__(self, first: int, last: int, batch: int, rank: int = 0, world: int = 1) -> None:
        if batch % world:
            raise ValueError(f"a batch of {batch} does not divide over {world} processes")
        self._steps = range(first, last)
        self._batch, self._share, self._rank = batch, batch // world, rank

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield each step's sample numbers."""
        for step in self._steps:
            begin = step * self._batch + self._rank * self._share
            yield list(range(begin, begin + self._share))
