"""The stacks of folders, and the stack that a file belongs to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from viewalign.data.catalogue import SeriesSource
from viewalign.data.readers.dicom_files import is_dicom_name
from viewalign.data.readers.dicom_headers import FilesRead, read_files
from viewalign.data.readers.dicom_stacks import Rejected, Stack, related, sort_into_stacks
from viewalign.errors import ExcludedImageError
from viewalign.utils.io import is_folder

_REMEMBERED = 8  # folders; enough to prepare the images of one folder in turn
FolderState = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class FolderScan:
    """The DICOM files of some folders (not of those below them).

    Attributes:
        stacks: volumes.
        rejected: slices that form no volume.
        damaged: files that could not be read, with the reason; they may be slices.
        no_slices: images that are no slices of a volume, with the reason.
        other: DICOM files without an image.
    """

    stacks: tuple[Stack, ...]
    rejected: tuple[Rejected, ...]
    damaged: tuple[tuple[Path, str], ...]
    no_slices: tuple[tuple[Path, str], ...]
    other: int

    @property
    def results(self) -> list[Stack | Rejected]:
        """Stacks, then rejected slices."""
        return [*self.stacks, *self.rejected]


def scan_folders(
    folders: Iterable[Path], on_file: Callable[[int, int], None] | None = None, workers: int | None = 0
) -> FolderScan:
    """Read the headers of all DICOM files of these folders, each file once, and sort their slices.

    Args:
        folders: in any order.
        on_file: called with (files read, total).
        workers: processes that read headers, which a crash of the reader does not affect; 0 reads in this process, and
            None does so for few files.
    """
    files = [path for folder in sorted(set(folders)) for path in _files(folder)]
    return _sorted_out(read_files(files, workers, on_file))


def _sorted_out(contents: FilesRead, of: Path | None = None) -> FolderScan:
    """Sort the slices of files; with `of`, only those that may belong to the series of that file."""
    frames = contents.frames
    results = sort_into_stacks(frames if of is None else related(frames, of))
    return FolderScan(
        tuple(item for item in results if isinstance(item, Stack)),
        tuple(item for item in results if isinstance(item, Rejected)),
        contents.damaged,
        contents.no_slices,
        contents.other,
    )


def folders_of(path: Path, source: SeriesSource | None) -> tuple[Path, ...]:
    """Return the folders whose files may belong to the series of a file, or of a folder with one series."""
    return (path if is_folder(path) else path.parent, *(source.folders if source else ()))


def series_of(path: Path, source: SeriesSource | None = None) -> Stack | Rejected:
    """Return the slices that a file belongs to, from all files of its folder and the further ones of its source.

    A folder means the only series in it.

    Raises:
        ExcludedImageError: the file is not a DICOM image, or the folder does not contain exactly one series.
    """
    folders = sorted(set(folders_of(path, source)))
    contents = FilesRead.joined([_headers(os.fspath(folder), folder_state(folder)) for folder in folders])
    scan = _sorted_out(contents, None if is_folder(path) else path)
    if is_folder(path):
        if len(scan.results) == 1:
            return scan.results[0]
        if not (scan.results or scan.damaged or scan.no_slices):
            raise ExcludedImageError("the folder contains no DICOM image")
        raise ExcludedImageError(f"the folder contains {len(scan.results)} DICOM series; use the path of a file of one")
    for found in scan.results:
        if any(frame.is_of(path) for frame in found.frames):
            return found
    reason = dict((*scan.damaged, *scan.no_slices)).get(path)
    raise ExcludedImageError(reason or "it is not a supported image")


def stack_of(path: Path, source: SeriesSource | None = None) -> Stack:
    """Return the stack that a file belongs to; see `series_of`.

    Raises:
        ExcludedImageError: the file is not a DICOM image, or its slices form no volume.
    """
    found = series_of(path, source)
    if isinstance(found, Rejected):
        raise ExcludedImageError(found.reason)
    return found


def folder_bytes(folder: Path) -> int:
    """Return the size of all files of a folder that may be slices."""
    return sum(size for _, size, _ in folder_state(folder))


def folder_state(folder: Path) -> FolderState:
    """Return name, size and time of change of all files of a folder that may be slices, sorted."""
    with os.scandir(folder) as entries:
        files = [(entry.name, entry.stat()) for entry in entries if _may_be_slice(entry)]
    return tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in files))


def _files(folder: Path) -> list[Path]:
    """Return all files of a folder that may be slices, sorted."""
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(entry.name for entry in entries if _may_be_slice(entry))]


def _may_be_slice(entry: os.DirEntry[str]) -> bool:
    """Say so by the name alone; what is certainly none, such as notes, does not change a folder's digest."""
    return is_dicom_name(entry.name) is not False and entry.is_file()


@lru_cache(maxsize=_REMEMBERED)
def _headers(folder: str, state: FolderState) -> FilesRead:
    """Read the files of a folder, unless it is as it was before."""
    return read_files([Path(folder) / name for name, _, _ in state])
