"""Preprocess the cases of a task in worker processes, with an optional cache of memory-mapped arrays."""

from __future__ import annotations

import hashlib
import json
import secrets
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
T = TypeVar("T")

_SINGLE_FILE_FORMATS = (".nii", ".nii.gz", ".mha", ".nrrd", ".b2nd")
"""Formats with the whole image in one file. A DICOM slice or a detached header does not change with its data."""
_MIN_CASES_FOR_WORKERS = 17
"""Starting processes takes about as long as preparing fewer cases."""
_MAX_DEFAULT_WORKERS = 16
"""Each process has one or two volumes in memory, and finished ones wait to be consumed."""
_SECONDS_PER_CASE = 600.0


def file_stamps(paths: Iterable[Path]) -> list[list[str | int]] | None:
    """Return path, size and modification time of each file, or None if they could not reveal a change of the image."""
    stamps: list[list[str | int]] = []
    for path in paths:
        if not path.name.lower().endswith(_SINGLE_FILE_FORMATS) or not path.is_file():
            return None
        stat = path.stat()
        stamps.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    return stamps


def cached_arrays(folder: Path, compute: Callable[[], Arrays]) -> dict[str, NDArray[Any]]:
    """Return the arrays stored in a folder, computing and storing them if the folder does not exist.

    Arrays are mapped copy-on-write. Several processes may call this together: the folder is renamed into place.
    """
    if not folder.is_dir():
        _write_arrays(compute(), folder)
    return {file.stem: np.load(file, mmap_mode="c", allow_pickle=False) for file in sorted(folder.glob("*.npy"))}


def _write_arrays(arrays: Arrays, folder: Path) -> None:
    # Not the process's number: containers on several machines have the same ones.
    partial = folder.with_name(f".writing-{folder.name}-{secrets.token_hex(8)}")
    partial.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial)
        if not folder.is_dir():  # otherwise another process was faster
            raise


def cache_key(preprocessor: Preprocessor, images: Mapping[str, Path], mask: Path | None) -> str | None:
    """Return the name of a case's cache folder, or None if changes of its files could not be detected."""
    files = dict(sorted(images.items())) | ({} if mask is None else {"mask": mask})
    stamps = file_stamps(files.values())
    if stamps is None:
        return None
    entries: list[list[str | int]] = [["preprocessing", preprocessor.fingerprint()]]
    entries += [[name, *stamp] for name, stamp in zip(files, stamps, strict=True)]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:32]


def prepare_case(case: TaskCase, preprocessor: Preprocessor, cache: Path | None = None) -> Sample:
    """Preprocess one case, or read it from the cache folder.

    Raises:
        ExcludedImageError: the case cannot be used.
    """
    key = None if cache is None else cache_key(preprocessor, case.images, case.mask)
    if cache is None or key is None:
        return preprocessor(case.images, case.mask)
    return Sample(**cached_arrays(cache / key, lambda: vars(preprocessor(case.images, case.mask))))


def default_processes(cases: int) -> int:
    """Return the number of processes that read this many cases; 0 is this process."""
    return 0 if cases < _MIN_CASES_FOR_WORKERS else min(default_workers(), _MAX_DEFAULT_WORKERS)


@dataclass(frozen=True)
class _Job:
    case: TaskCase
    preprocessor: Preprocessor
    cache: Path | None


def iter_prepared(
    cases: Sequence[TaskCase], preprocessor: Preprocessor, cache: Path | None = None, workers: int | None = None
) -> Iterator[tuple[TaskCase, Sample | str]]:
    """Yield each case with its sample, or with the reason why it cannot be used, in order of completion.

    Args:
        cases: cases to prepare; their targets are not used.
        preprocessor: the task's preprocessor.
        cache: folder of cached samples, which are memory-mapped; None keeps samples in memory.
        workers: number of processes; 0 prepares in this process without protection against crashing readers. Default:
            one per core, at most 16, and 0 for up to 16 cases.
    """
    if workers is None:
        workers = default_processes(len(cases))
    jobs = (_Job(case, preprocessor, cache) for case in cases)
    for job, result in run_jobs(_run_job, jobs, workers, _SECONDS_PER_CASE):
        if isinstance(result, WorkerLost):
            yield job.case, result.reason
        else:
            yield job.case, prepare_case(job.case, preprocessor, cache) if result is None else result


def _run_job(job: _Job) -> Sample | str | None:
    """Return a sample, the reason for its exclusion, or None if it is in the cache."""
    try:
        sample = prepare_case(job.case, job.preprocessor, job.cache)
    except UserError as problem:
        return str(problem)
    return None if isinstance(sample.image, np.memmap) else sample


def split_results(
    cases: Sequence[TaskCase], results: Mapping[str, T | str]
) -> tuple[dict[str, T], list[tuple[str, str]]]:
    """Separate results by case name into values and (name, reason) of excluded cases, both in the order of `cases`."""
    ordered = [(case.case, results[case.case]) for case in cases]
    values = {name: value for name, value in ordered if not isinstance(value, str)}
    return values, [(name, value) for name, value in ordered if isinstance(value, str)]


def prepare_cases(
    cases: Sequence[TaskCase],
    preprocessor: Preprocessor,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
    workers: int | None = None,
) -> tuple[dict[str, Sample], list[tuple[str, str]]]:
    """Prepare all cases; return samples by case name, and (name, reason) of excluded cases.

    Args:
        cases, preprocessor, cache, workers: see `iter_prepared`.
        progress: called with (done, total) after each case.
    """
    results: dict[str, Sample | str] = {}
    for case, result in iter_prepared(cases, preprocessor, cache, workers):
        results[case.case] = result
        if progress:
            progress(len(results), len(cases))
    return split_results(cases, results)
