"""Headers of many DICOM files: each is opened once, in several processes if there are many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from viewalign.data.readers.dicom_files import read_if_dicom
from viewalign.data.readers.dicom_slices import Frame, NoSliceError
from viewalign.data.worker_pool import MANY, WorkerLost, default_workers, run_jobs
from viewalign.errors import ExcludedImageError

_CHUNK = 64
"""Files per job: enough that sending results costs little, few enough that little is read again after a crash."""


@dataclass(frozen=True)
class FilesRead:
    """What DICOM files contain, in their order.

    Attributes:
        frames: slices.
        damaged: files that could not be read, with the reason; they may be slices.
        no_slices: images that are no slices of a volume, with the reason.
        other: number of DICOM files without an image.
    """

    frames: tuple[Frame, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()
    no_slices: tuple[tuple[Path, str], ...] = ()
    other: int = 0

    @classmethod
    def joined(cls, parts: Sequence[FilesRead]) -> FilesRead:
        """Return the contents of several groups of files."""
        return cls(
            tuple(frame for part in parts for frame in part.frames),
            tuple(each for part in parts for each in part.damaged),
            tuple(each for part in parts for each in part.no_slices),
            sum(part.other for part in parts),
        )


def read_files(
    files: Sequence[Path], workers: int | None = 0, on_file: Callable[[int, int], None] | None = None
) -> FilesRead:
    """Read the headers of those files that are DICOM; the result is the same for any number of processes.

    Args:
        files: in the order of the result.
        workers: processes; 0 reads in this process, without protection from crashes. None: one per core for many files.
        on_file: called with (files read, total).
    """
    if workers is None:
        workers = default_workers() if len(files) >= MANY else 0
    chunks = [tuple(files[first : first + _CHUNK]) for first in range(0, len(files), _CHUNK)]
    found: dict[Path, FilesRead] = {}
    for chunk, result in _read_chunks(chunks, workers):
        found[chunk[0]] = result
        if on_file:
            on_file(min(_CHUNK * len(found), len(files)), len(files))
    return FilesRead.joined([found[chunk[0]] for chunk in chunks])


def _read_chunks(chunks: Iterable[tuple[Path, ...]], workers: int) -> Iterable[tuple[tuple[Path, ...], FilesRead]]:
    """Yield chunks with their contents; the files of a chunk whose process crashed are read one by one."""
    crashed: list[tuple[Path, ...]] = []
    for chunk, result in run_jobs(_read_chunk, chunks, workers):
        if isinstance(result, WorkerLost):
            crashed.append(chunk)
        else:
            yield chunk, result
    for chunk in crashed:
        parts = [
            FilesRead(damaged=((path, result.reason),)) if isinstance(result, WorkerLost) else result
            for (path,), result in sorted(run_jobs(_read_chunk, [(path,) for path in chunk], 1), key=itemgetter(0))
        ]
        yield chunk, FilesRead.joined(parts)


def _read_chunk(files: tuple[Path, ...]) -> FilesRead:
    """Read files one after the other; runs in a worker."""
    frames: list[Frame] = []
    damaged: list[tuple[Path, str]] = []
    no_slices: list[tuple[Path, str]] = []
    other = 0
    for path in files:
        try:
            found = read_if_dicom(path)
        except ExcludedImageError as exclusion:
            (no_slices if isinstance(exclusion, NoSliceError) else damaged).append((path, str(exclusion)))
            continue
        frames.extend(found or ())
        other += found == []
    return FilesRead(tuple(frames), tuple(damaged), tuple(no_slices), other)
