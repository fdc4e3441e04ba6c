"""The stacks of folders, and the stack that a file belongs to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from viewalign.data.catalogue import SeriesSource
from viewalign.data.readers.dicom_files import Frame, may_be_dicom, read_frames
from viewalign.data.readers.dicom_stacks import Rejected, Stack, related, sort_into_stacks
from viewalign.errors import ExcludedImageError

_REMEMBERED = 8  # folders; enough to prepare the images of one folder in turn
FolderState = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class FolderScan:
    """The DICOM files of some folders (not of those below them).

    Attributes:
        stacks: volumes.
        rejected: slices that form no volume.
        damaged: files that could not be read, with the reason.
        other: DICOM files without an image.
    """

    stacks: tuple[Stack, ...]
    rejected: tuple[Rejected, ...]
    damaged: tuple[tuple[Path, str], ...]
    other: int

    @property
    def results(self) -> list[Stack | Rejected]:
        """Stacks, then rejected slices."""
        return [*self.stacks, *self.rejected]


def scan_folders(
    folders: Iterable[Path], on_folder: Callable[[int, int], None] | None = None, of: Path | None = None
) -> FolderScan:
    """Read the headers of all DICOM files of these folders and sort their slices.

    Args:
        folders: in any order.
        on_folder: called with (folders read, total).
        of: a file; only slices that may belong to its series are sorted. Default all.
    """
    ordered = sorted(set(folders))
    frames: list[Frame] = []
    damaged: list[tuple[Path, str]] = []
    other = 0
    for count, folder in enumerate(ordered):
        if on_folder:
            on_folder(count, len(ordered))
        found, bad, without = _headers(os.fspath(folder), folder_state(folder))
        frames.extend(found)
        damaged.extend(bad)
        other += without
    sorted_out = sort_into_stacks(frames if of is None else related(frames, of))
    return FolderScan(
        tuple(item for item in sorted_out if isinstance(item, Stack)),
        tuple(item for item in sorted_out if isinstance(item, Rejected)),
        tuple(damaged),
        other,
    )


def folders_of(path: Path, source: SeriesSource | None) -> tuple[Path, ...]:
    """Return the folders whose files may belong to the series of a file, or of a folder with one series."""
    return (path if path.is_dir() else path.parent, *(source.folders if source else ()))


def series_of(path: Path, source: SeriesSource | None = None) -> Stack | Rejected:
    """Return the slices that a file belongs to, from all files of its folder and the further ones of its source.

    A folder means the only series in it.

    Raises:
        ExcludedImageError: the file is not a DICOM image, or the folder does not contain exactly one series.
    """
    scan = scan_folders(folders_of(path, source), of=None if path.is_dir() else path)
    if path.is_dir():
        if len(scan.results) == 1:
            return scan.results[0]
        if not scan.results and not scan.damaged:
            raise ExcludedImageError("the folder contains no DICOM image")
        raise ExcludedImageError(f"the folder contains {len(scan.results)} DICOM series; use the path of a file of one")
    for found in scan.results:
        if any(frame.path == path for frame in found.frames):
            return found
    reason = dict(scan.damaged).get(path)
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
    """Return the size of all files of a folder, which changes when a slice is added, removed or resized."""
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())


def folder_state(folder: Path) -> FolderState:
    """Return name, size and time of change of all files of a folder, sorted."""
    with os.scandir(folder) as entries:
        files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in files))


@lru_cache(maxsize=_REMEMBERED)
def _headers(folder: str, state: FolderState) -> tuple[tuple[Frame, ...], tuple[tuple[Path, str], ...], int]:
    """Return slices, damaged files with their reasons, and the number of other DICOM files of a folder."""
    frames: list[Frame] = []
    damaged, other = [], 0
    for path in (Path(folder) / name for name, _, _ in state):
        if not may_be_dicom(path):
            continue
        try:
            found = read_frames(path)
        except ExcludedImageError as exclusion:
            damaged.append((path, str(exclusion)))
            continue
        frames.extend(found)
        other += not found
    return tuple(frames), tuple(damaged), other
