"""Arrays that are worked out once and kept in a folder; read again they are mapped, not loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from viewalign.data.worker_pool import WorkerLost, default_workers, run_jobs
from viewalign.errors import UserError
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.preprocessing import Preprocessor, Sample

Arrays = Mapping[str, NDArray[Any]]
_WHOLE_FILES = (".nii", ".nii.gz", ".mha", ".nrrd", ".b2nd")
"""Files that hold all of an image. A DICOM slice or a detached header says nothing of its neighbours."""


def stamps(paths: Iterable[Path]) -> list[list[str | int]] | None:
    """Return each file's path, size and time of change; None where a change of its image could not be told by them."""
    told: list[list[str | int]] = []
    for path in paths:
        if not path.name.lower().endswith(_WHOLE_FILES) or not path.is_file():
            return None
        facts = path.stat()
        told.append([str(path.resolve()), facts.st_size, facts.st_mtime_ns])
    return told


def kept(place: Path, make: Callable[[], Arrays]) -> dict[str, NDArray[Any]]:
    """Return the arrays that lie in a folder, after making and writing them where there is none.

    What is changed in them stays with the caller. Processes may call this together: the folder appears whole.
    """
    if not place.is_dir():
        _write(make(), place)
    return {file.stem: np.load(file, mmap_mode="c", allow_pickle=False) for file in sorted(place.glob("*.npy"))}


def _write(arrays: Arrays, place: Path) -> None:
    partial = place.with_name(f".writing-{place.name}-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        partial.rename(place)
    except OSError:
        shutil.rmtree(partial)
        if not place.is_dir():  # else another process was faster
            raise


Prepare = Callable[[Mapping[str, Path], Path | None], Sample]


def cached(preprocessor: Preprocessor, folder: Path | None) -> Prepare:
    """Return a preprocessor that keeps what it made in a folder; the preprocessor itself without a folder."""
    if folder is None:
        return preprocessor

    def prepare(images: Mapping[str, Path], mask: Path | None = None) -> Sample:
        name = key(preprocessor, images, mask)
        if name is None:
            return preprocessor(images, mask)
        return Sample(**kept(folder / name, lambda: vars(preprocessor(images, mask))))

    return prepare


def key(preprocessor: Preprocessor, images: Mapping[str, Path], mask: Path | None) -> str | None:
    """Return what a case is kept under; None where a change of its files could not be told."""
    named = [*sorted(images.items()), *([("mask", mask)] if mask is not None else [])]
    files = stamps(path for _, path in named)
    if files is None:
        return None
    told: list[list[str | int]] = [["preprocessing", preprocessor.fingerprint()]]
    told += [[word, *file] for (word, _), file in zip(named, files, strict=True)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


T = TypeVar("T")

_FEW = 16
"""So many cases this process prepares by itself: starting others takes about as long."""
_MOST = 16
"""Processes at most, unless told: each holds a volume or two, and as many wait to be taken."""
_SECONDS = 600.0
"""How long a case may take."""


@dataclass(frozen=True)
class _Job:
    case: TaskCase
    preprocessor: Preprocessor
    cache: Path | None


def prepared(
    cases: Sequence[TaskCase], preprocessor: Preprocessor, cache: Path | None = None, workers: int | None = None
) -> Iterator[tuple[TaskCase, Sample | str]]:
    """Yield each case with its sample, or with the reason why it cannot be used, as they get ready: in any order.

    Args:
        cases: their targets are not looked at.
        preprocessor: of the task.
        cache: folder of prepared cases, see `tasks.caching`; what lies there is mapped, not loaded.
        workers: processes; 0 works in this one, without guard. Default: one a core, and this one for few cases.
    """
    if workers is None:
        workers = 0 if len(cases) <= _FEW else min(default_workers(), _MOST)
    jobs = (_Job(case, preprocessor, cache) for case in cases)
    for job, found in run_jobs(_prepare, jobs, workers, _SECONDS):
        if isinstance(found, WorkerLost):
            yield job.case, found.reason
        elif found is None:
            yield job.case, cached(preprocessor, cache)(job.case.images, job.case.mask)
        else:
            yield job.case, found


def _prepare(job: _Job) -> Sample | str | None:
    """Return a case's sample, why there is none, or None where it lies in the cache now."""
    try:
        sample = cached(job.preprocessor, job.cache)(job.case.images, job.case.mask)
    except UserError as problem:
        return str(problem)
    return None if isinstance(sample.image, np.memmap) else sample


def in_order(cases: Sequence[TaskCase], found: Mapping[str, T | str]) -> tuple[dict[str, T], list[tuple[str, str]]]:
    """Part what came of cases, by name, into results and reasons, both in the order of the cases."""
    told = [(case.case, found[case.case]) for case in cases]
    results = {name: value for name, value in told if not isinstance(value, str)}
    return results, [(name, value) for name, value in told if isinstance(value, str)]


def prepare_cases(
    cases: Sequence[TaskCase],
    preprocessor: Preprocessor,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
    workers: int | None = None,
) -> tuple[dict[str, Sample], list[tuple[str, str]]]:
    """Prepare all cases, in memory or in a cache; returns their samples, and name and reason of each that is refused.

    Args:
        cases, preprocessor, cache, workers: as `prepared` takes them.
        progress: takes how many cases are done and how many there are.
    """
    found: dict[str, Sample | str] = {}
    for number, (case, sample) in enumerate(prepared(cases, preprocessor, cache, workers), 1):
        found[case.case] = sample
        if progress:
            progress(number, len(cases))
    return in_order(cases, found)
