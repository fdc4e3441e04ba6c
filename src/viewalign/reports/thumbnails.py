"""Small pictures of images for lists: the middle axial slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign.data.catalogue import SeriesSource
from viewalign.data.geometry import reorientation_to_lps
from viewalign.data.readers.files import read_volume
from viewalign.data.store import Store
from viewalign.data.worker_pool import WorkerLost, run_jobs
from viewalign.errors import ExcludedImageError
from viewalign.reports.page import data_url

_SIDE = 128  # pixels, at most
_VOXELS = 300_000_000
"""Voxels that are read for all pictures of a page together."""
_SECONDS = 60.0
Plane = NDArray[np.float32]


def file_thumbnails(
    files: Iterable[str], series: Mapping[str, SeriesSource], workers: int = 0
) -> Iterator[tuple[str, str]]:
    """Yield each file with its picture as a data URL; files that cannot be read, or are too large, are left out.

    Args:
        files: paths.
        series: sources of those that name a DICOM series.
        workers: 1 reads in a process of its own, which a damaged file cannot take this one along with; 0 in this one.
    """
    left = _VOXELS
    jobs = ((Path(file), series.get(file), left) for file in files)
    for job, result in run_jobs(_read_plane, jobs, workers, _SECONDS):
        if not isinstance(result, WorkerLost) and result is not None:
            plane, ratio, voxels = result
            left -= voxels
            yield str(job[0]), picture(plane, ratio)


def store_thumbnails(store: Store, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the id of each of these images that the store can read, with its picture as a data URL."""
    numbers = {name: k for k, name in enumerate(store.ids)}
    for name in ids:
        if (k := numbers.get(name)) is None:
            continue
        depth, rows, columns = store.shape(k)
        try:
            box = store.read(k, (depth // 2, 0, 0), (depth // 2 + 1, rows, columns))
        except ExcludedImageError:
            continue
        _, height, width = store.spacing(k)
        yield name, picture(box[0, 0], height / width)


def picture(plane: Plane, ratio: float) -> str:
    """Return a slice as a data URL.

    Args:
        plane: (rows, columns).
        ratio: size of a row over size of a column.
    """
    rows, columns = plane.shape
    scale = max(rows * ratio, columns) / _SIDE
    size = max(1, round(rows * ratio / scale)), max(1, round(columns / scale))
    index = [np.arange(count) * length // count for count, length in zip(size, plane.shape, strict=True)]
    low, high = np.percentile(plane, (1, 99.5))
    if low == high:  # a label map with few labelled voxels
        low, high = plane.min(), plane.max()
    grey = np.clip((plane[np.ix_(*index)] - low) / max(float(high - low), 1e-30), 0, 1)
    return data_url((255 * grey).astype(np.uint8))


def _read_plane(job: tuple[Path, SeriesSource | None, int]) -> tuple[Plane, float, int] | None:
    path, source, limit = job
    try:
        volume = read_volume(path, fill_nonfinite=True, max_voxels=limit, source=source)
    except (ExcludedImageError, OSError, MemoryError):
        return None
    turn = reorientation_to_lps(volume.direction)
    array = turn.apply(volume.array)
    _, height, width = (volume.spacing[axis] for axis in turn.axes)
    return np.array(_shown(array)), height / width, array.size


def _shown(array: Plane) -> Plane:
    """Return the middle slice, or the one with most foreground if that is constant, as in many label maps."""
    middle: Plane = array[len(array) // 2]
    if middle.min() < middle.max():
        return middle
    fullest: Plane = array[(array != middle.flat[0]).sum(axis=(1, 2)).argmax()]
    return fullest
