"""Cost of preparing a catalogue: sizes come from headers, rates from a few images. Nothing is written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from viewalign.data.catalogue import Record
from viewalign.data.entries import image_bytes
from viewalign.data.fingerprint import masks_of
from viewalign.data.geometry import Shape, reorientation_to_lps, resampled_shape
from viewalign.data.layout import chunk_and_block, compress
from viewalign.data.preprocessing import prepare_channels
from viewalign.data.readers.headers import read_header, source_bytes
from viewalign.data.settings import PrepareSettings
from viewalign.data.worker import read_image
from viewalign.errors import ExcludedImageError, os_reason
from viewalign.utils.rng import make_rng

MOST_HEADERS = 3000
_MOST_TRIED, _LARGEST_TRIED = 24, 60_000_000


@dataclass(frozen=True)
class Size:
    """One image, as described by its header.

    Attributes:
        record: of the catalogue, or its channels.
        read, stored: voxels of all frames or channels as read, and after resampling; cropping is not known yet.
        shape: (D, H, W) after resampling.
        bytes: of its files.
    """

    record: Record
    read: int
    stored: int
    shape: Shape
    bytes: int


@dataclass
class Survey:
    """Results of reading the headers of a catalogue.

    Attributes:
        images: in the catalogue.
        looked_at: number whose header was read (a random part of a very large catalogue).
        sizes: of those that are included.
        excluded: number of read headers whose image would be excluded, by reason.
    """

    images: int
    looked_at: int = 0
    sizes: list[Size] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)

    @property
    def factor(self) -> float:
        """Images of the catalogue per read header."""
        return self.images / max(self.looked_at, 1)

    def smaller_than(self, view: Shape) -> float:
        """Return the number of images smaller than a view along some axis; cropping may add more."""
        few = sum(any(n < v for n, v in zip(size.shape, view, strict=True)) for size in self.sizes)
        return few * self.factor

    @property
    def largest(self) -> int:
        """Voxels of the largest image, before or after resampling."""
        return max((max(size.read, size.stored) for size in self.sizes), default=0)


@dataclass
class Trial:
    """Cost of preparing a few images in memory.

    Attributes:
        images: prepared.
        seconds: per voxel read or stored, whichever is more.
        bytes: stored per voxel of the uncropped image.
        kept: share of voxels that remain after cropping.
        excluded: exclusions that only the voxels show, per tried image.
    """

    images: int = 0
    seconds: float = 0.0
    bytes: float = 0.0
    kept: float = 1.0
    excluded: list[str] = field(default_factory=list)


def survey(
    records: Sequence[Record], settings: PrepareSettings, on_image: Callable[[int, int], None] | None = None
) -> Survey:
    """Read headers: all of them, or a random `MOST_HEADERS` of a larger catalogue.

    Args:
        records: the images; those with channels as `channels.stacked` returns them.
        settings: of the preparation.
        on_image: called with (images done, total).
    """
    order = make_rng(0, "estimate").permutation(len(records))[:MOST_HEADERS]
    found = Survey(len(records))
    for number, k in enumerate(np.sort(order)):
        record = records[int(k)]
        found.looked_at += 1
        try:
            found.sizes.append(_size(record, settings))
        except ExcludedImageError as exclusion:
            found.excluded[str(exclusion)] += 1
        except OSError as problem:
            found.excluded[os_reason(problem)] += 1
        if on_image:
            on_image(number + 1, len(order))
    return found


def _size(record: Record, settings: PrepareSettings) -> Size:
    if record.channels:
        sizes = [_size(channel, settings) for channel in record.channels]
        read, stored = sum(size.read for size in sizes), sum(size.stored for size in sizes)
        return Size(record, read, stored, sizes[0].shape, sum(size.bytes for size in sizes))
    header = read_header(record.path, frames=settings.frames != "exclude", source=record.series)
    axes = reorientation_to_lps(header.direction).axes
    d, h, w = (header.shape[axis] for axis in axes)
    x, y, z = (header.spacing[axis] for axis in axes)
    shape = resampled_shape((d, h, w), (x, y, z), settings.spacing) if settings.spacing else (d, h, w)
    size = image_bytes(record.path, record.series, header) + sum(map(source_bytes, masks_of(record)))
    return Size(record, d * h * w * header.frames, int(np.prod(shape)) * header.frames, shape, size)


def try_some(sizes: Sequence[Size], settings: PrepareSettings, seconds: float = 20.0) -> Trial:
    """Prepare images at random, in this process and in memory, until the time is up or a few dozen are done."""
    order = make_rng(1, "estimate").permutation(len(sizes))
    begin, spent, work, stored, uncropped, kept = time.perf_counter(), 0.0, 0, 0, 0, 0
    trial = Trial()
    for k in order[:_MOST_TRIED]:
        size = sizes[int(k)]
        if max(size.read, size.stored) > _LARGEST_TRIED:
            continue
        tick = time.perf_counter()
        try:
            packed, voxels = _prepared(size.record, settings)
        except ExcludedImageError as exclusion:
            trial.excluded.append(str(exclusion))
            continue
        stored += packed
        spent += time.perf_counter() - tick
        work += max(size.read, size.stored)
        uncropped += size.stored
        kept += voxels
        trial.images += 1
        if time.perf_counter() - begin > seconds:
            break
    if trial.images:
        trial.seconds, trial.bytes, trial.kept = spent / work, stored / uncropped, kept / uncropped
    return trial


def _prepared(record: Record, settings: PrepareSettings) -> tuple[int, int]:
    """Prepare an image as `worker.work` does; return the bytes of its arrays and its voxels, as they would be stored.

    Raises:
        ExcludedImageError: it cannot be used.
    """
    groups, masks = read_image(record, settings)
    sizes, packed, voxels = chunk_and_block(settings.patch_size), 0, 0
    for volumes in groups:
        prepared = prepare_channels(volumes, settings, masks)
        arrays = [prepared.array, *(mask[None] for mask in prepared.masks.values())]
        packed += sum(len(compress(array, sizes)) for array in arrays)
        voxels += prepared.array.size
    return packed, voxels


def disk_bytes(found: Survey, trial: Trial) -> float:
    """Return the size of the store."""
    return found.factor * trial.bytes * sum(size.stored for size in found.sizes)


def core_seconds(found: Survey, trial: Trial) -> float:
    """Return the seconds that one core needs for all images."""
    return found.factor * trial.seconds * sum(max(size.read, size.stored) for size in found.sizes)


def excluded_in_all(found: Survey, trial: Trial, before: Iterable[object]) -> float:
    """Return how many images will be excluded: known ones, by header, and by voxels at the rate of the trial."""
    tried = trial.images + len(trial.excluded)
    by_voxels = len(trial.excluded) / tried * len(found.sizes) if tried else 0.0
    return len(list(before)) + found.factor * (sum(found.excluded.values()) + by_voxels)
