"""Samples of a run: which volume, which views, and the box of voxels that contains all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from viewalign.errors import ExcludedImageError
from viewalign.utils.rng import make_rng
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views import affines, lattice
from viewalign.views.latentcampus import LatentCampusPair
from viewalign.views.sampling import (
    ISOTROPIC,
    LocalViews,
    SampledViews,
    Spacing,
    ViewSampler,
    ViewSamplingConfig,
    sample_pair,
)

_MAX_SUBSTITUTES = 20
"""Largest number of substitutes for a volume that cannot be read before the run stops."""
_MIN_SHARED = 0.25
"""Least fraction of a pair's lattice that both views and the volume contain."""


class VolumeSource(Protocol):
    """Volumes that views are sampled from; `data.store.Store` is one."""

    def __len__(self) -> int:
        """Return the number of volumes."""

    def shape(self, k: int) -> Size:
        """Return (D, H, W) in voxels."""

    def spacing(self, k: int) -> Spacing:
        """Return the voxel size in mm."""

    def foreground_threshold(self, k: int) -> float:
        """Return the value above which a voxel is foreground."""

    def read(self, k: int, start: Size, stop: Size) -> NDArray[np.float32]:
        """Return the voxels (C, d, h, w) of a box."""

    def read_mask(self, k: int, kind: str, start: Size, stop: Size) -> NDArray[np.bool_] | None:
        """Return the mask (d, h, w) of a box, or None if the volume has none."""


class ArraySource:
    """An array (D, H, W) or (C, D, H, W) as a source of `count` equal volumes, of which every voxel is foreground."""

    def __init__(self, array: ArrayLike, spacing: Spacing = ISOTROPIC, count: int = 1) -> None:
        values = np.asarray(array, dtype=np.float32)
        self._array = values[None] if values.ndim == 3 else values
        self._spacing, self._count = spacing, count

    def __len__(self) -> int:
        return self._count

    def shape(self, k: int) -> Size:  # noqa: ARG002, D102
        d, h, w = self._array.shape[1:]
        return (d, h, w)

    def spacing(self, k: int) -> Spacing:  # noqa: ARG002, D102
        return self._spacing

    def foreground_threshold(self, k: int) -> float:  # noqa: ARG002, D102
        return -np.inf

    def read(self, k: int, start: Size, stop: Size) -> NDArray[np.float32]:  # noqa: ARG002, D102
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.ascontiguousarray(self._array[(slice(None), *box)])

    def read_mask(self, k: int, kind: str, start: Size, stop: Size) -> None:  # noqa: D102
        pass


@dataclass(frozen=True)
class Sample:
    """One volume's part of a batch, as read by a worker.

    Attributes:
        index: number of the sample in the run.
        crop: (C, d, h, w) float32, the box that contains all its views.
        masked: (1, d, h, w) bool, true inside an anonymisation mask, or None.
        start: first voxel of the box in the volume.
        shape: (D, H, W) of the volume.
        views: geometry of the views.
        volume_id, subject_id: numbers in the store.
        spacing: voxel size of the volume in mm.
        excluded: volumes that were tried before and could not be read, with the reason.
    """

    index: int
    crop: Tensor
    masked: Tensor | None
    start: Size
    shape: Size
    views: SampledViews
    volume_id: int
    subject_id: int
    spacing: Spacing = ISOTROPIC
    excluded: tuple[tuple[int, str], ...] = ()

    @property
    def to_volume(self) -> Tensor:
        """Affines (V, 3, 4) of the views."""
        return self.views.to_volume

    @property
    def local(self) -> LocalViews | None:
        """Views of another size."""
        return self.views.local

    @property
    def claimed(self) -> Tensor | None:
        """Boxes (V, 2, 3) of the LatentCampus geometry; None for exact views."""
        return self.views.claimed if isinstance(self.views, LatentCampusPair) else None

    def pin_memory(self) -> Sample:
        """Return the sample with its voxels in pinned memory, for copies to a GPU that do not block."""
        masked = None if self.masked is None else self.masked.pin_memory()
        return replace(self, crop=self.crop.pin_memory(), masked=masked)


class SampleReader(Dataset[Sample]):
    """Reads sample i of a run; all its random numbers are a function of (seed, i).

    Args:
        source: the volumes.
        subjects: subject number of each volume.
        volumes: numbers of the volumes to sample from (training or validation).
        config: distribution of the views' geometry.
        batch: volumes per global batch, sampled together without replacement.
        seed: seed of the run.
        purpose: keeps the random numbers of training and validation apart.
        min_foreground, redraws: views with a smaller foreground fraction are sampled again, up to `redraws` times; the
            best ones are kept.
        sampler: samples the views of a volume.
        weights: relative sampling frequency of each of `volumes`; None means uniform.
        distinct: whether a batch has a second volume of a subject only if there are no other subjects left, as
            needed by methods that compare or mix subjects. Subjects with many volumes are then sampled less often
            than their weights say.
    """

    def __init__(
        self,
        source: VolumeSource,
        subjects: NDArray[np.int64],
        volumes: NDArray[np.int64],
        config: ViewSamplingConfig,
        batch: int,
        seed: int,
        purpose: str = "train",
        min_foreground: float = 0.1,
        redraws: int = 8,
        sampler: ViewSampler = sample_pair,
        weights: NDArray[np.float64] | None = None,
        distinct: bool = True,
    ) -> None:
        if weights is not None:
            volumes, weights = volumes[weights > 0], weights[weights > 0]
        self._source, self._subjects, self._volumes = source, subjects, volumes
        self._config, self._batch, self._seed, self._purpose = config, batch, seed, purpose
        self._min_foreground, self._redraws, self._sampler = min_foreground, redraws, sampler
        self._weights, self._distinct = weights, distinct
        self._cumulative = None if weights is None else np.cumsum(weights)

    def __getitem__(self, index: int) -> Sample:
        """Read sample `index`; a volume that cannot be read is replaced by another and reported in the sample."""
        excluded: list[tuple[int, str]] = []
        volume = self.volume_of(index)
        for attempt in range(_MAX_SUBSTITUTES):
            try:
                return self._read(index, volume, attempt, tuple(excluded))
            except ExcludedImageError as problem:
                excluded.append((volume, str(problem)))
                rng = make_rng(self._seed, index, attempt, self._purpose, "substitute")
                uniform = self._cumulative is None
                volume = int(rng.choice(self._volumes) if uniform else self._volumes[self._positions(rng, 1)[0]])
        raise ExcludedImageError(f"{_MAX_SUBSTITUTES} volumes in a row cannot be read; the last: {excluded[-1][1]}")

    def volume_of(self, index: int) -> int:
        """Return the volume of sample `index`, before any substitution."""
        step, slot = divmod(index, self._batch)
        return int(self._sample_volumes(step)[slot])

    def _sample_volumes(self, step: int) -> NDArray[np.int64]:
        """Sample the volumes of a global batch: different ones, of different subjects first if they are `distinct`."""
        rng = make_rng(self._seed, step, self._purpose, "volumes")
        order = self._candidates(rng)
        if self._distinct:
            _, first = np.unique(self._subjects[order], return_index=True)
            new_subject = np.zeros(len(order), dtype=bool)
            new_subject[first] = True
            order = np.concatenate([order[new_subject], order[~new_subject]])
        repeats = -(-self._batch // len(order))
        return np.tile(order, repeats)[: self._batch]

    def _candidates(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return volumes in random order; of very many only some, so that the cost is independent of the store."""
        limit = 64 * self._batch
        if len(self._volumes) <= limit:
            if self._weights is None:
                return rng.permutation(self._volumes)
            # Exponential clocks: sorting by their times samples without replacement by weight.
            return self._volumes[np.argsort(rng.exponential(size=len(self._volumes)) / self._weights)]
        positions = self._positions(rng, limit)
        _, first = np.unique(positions, return_index=True)
        return self._volumes[positions[np.sort(first)]]

    def _positions(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Sample positions in `volumes` with replacement."""
        if self._cumulative is None:
            return np.asarray(rng.choice(len(self._volumes), size=count))
        found = np.searchsorted(self._cumulative, rng.random(count) * self._cumulative[-1], side="right")
        return np.asarray(np.minimum(found, len(self._volumes) - 1), dtype=np.int64)

    def _read(self, index: int, volume: int, attempt: int, excluded: tuple[tuple[int, str], ...]) -> Sample:
        """Sample views of a volume until they contain enough foreground; returns the best attempt."""
        shape, spacing = self._source.shape(volume), self._source.spacing(volume)
        best: Sample | None = None
        highest = -1.0
        for redraw in range(self._redraws + 1):
            rng = make_rng(self._seed, index, attempt, redraw, self._purpose, "views")
            views = self._sampler(rng, shape, self._config, spacing)
            start, stop = self._box(views, shape)
            crop = torch.from_numpy(self._source.read(volume, start, stop))
            subject = int(self._subjects[volume])
            sample = Sample(index, crop, None, start, shape, views, volume, subject, spacing, excluded)
            score = self._score(sample)
            if score > highest:
                best, highest = sample, score
            if score >= self._min_foreground:
                break
        assert best is not None
        stop = tuple(np.add(best.start, spatial_size(best.crop)).tolist())
        mask = self._source.read_mask(volume, "anonymisation", best.start, stop)
        return best if mask is None else replace(best, masked=torch.from_numpy(mask)[None])

    def _box(self, views: SampledViews, shape: Size) -> tuple[Size, Size]:
        """Return the box (start, stop) that contains all views."""
        start, stop = enclosing_box(views.to_volume, self._config.size, shape)
        if views.local is None:
            return start, stop
        low, high = enclosing_box(views.local.to_volume, views.local.size, shape)
        a, b = np.minimum(start, low).tolist(), np.maximum(stop, high).tolist()
        return (a[0], a[1], a[2]), (b[0], b[1], b[2])

    def _score(self, sample: Sample) -> float:
        """Return the foreground fraction of the views: the smaller one of a pair, else the mean.

        A mean, because some of many views, such as a grid over a region, may lie outside the body. A pair that shares
        less than a quarter of its lattice scores 0.
        """
        size, maps = self._config.size, sample.to_volume
        threshold = self._source.foreground_threshold(sample.volume_id)
        fractions = [_foreground(sample, view, size, threshold) for view in maps]
        if len(maps) != 2:
            return sum(fractions) / len(fractions)
        points = lattice.lattice_points(maps[:1], maps[1:2], size, (4, 4, 4), 1)
        top = torch.tensor(sample.shape, dtype=torch.float64) - 1
        common = lattice.inside(points, maps[1:2], size) & ((points >= 0) & (points <= top)).all(-1)
        return 0.0 if common.double().mean() < _MIN_SHARED else min(fractions)


def _foreground(sample: Sample, to_volume: Tensor, size: Size, threshold: float) -> float:
    """Return the foreground fraction of a view, from an 8 x 8 x 8 lattice of its voxels."""
    axes = [torch.linspace(0, n - 1, 8, dtype=torch.float64).round() for n in size]
    where = affines.apply(to_volume, torch.cartesian_prod(*axes)).round().long() - torch.tensor(sample.start)
    within = ((where >= 0) & (where < torch.tensor(sample.crop.shape[1:]))).all(-1)
    d, h, w = where[within].unbind(-1)
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
    """Yields the sample numbers of each step for one process: step x global batch + slot.

    Args:
        first, last: steps [first, last).
        batch: global batch size.
        rank, world: number of this process and of all processes; each gets an equal range of slots.
    """

    def __init__(self, first: int, last: int, batch: int, rank: int = 0, world: int = 1) -> None:
        if batch % world:
            raise ValueError(f"a batch of {batch} does not divide over {world} processes")
        self._steps = range(first, last)
        self._batch, self._share, self._rank = batch, batch // world, rank

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            begin = step * self._batch + self._rank * self._share
            yield list(range(begin, begin + self._share))
