"""DICOM folders that contain several images of a run: they are listed and read once, not once for each image."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

from viewalign.data.catalogue import Record, SeriesSource
from viewalign.data.file_types import suffix_of
from viewalign.data.fingerprint import folder_digest, joined_digest, masks_of
from viewalign.data.readers.dicom_folders import FolderState, folder_state, folders_of, scan_folders
from viewalign.data.readers.dicom_stacks import Rejected, Stack
from viewalign.data.readers.headers import source_bytes

_REMEMBERED = 8
"""Folders whose contents are kept in memory; images of one folder usually follow each other."""


@dataclass(frozen=True)
class Source:
    """Files of an image as they were when its folders were read.

    Attributes:
        digest: as `record_digest` returns it.
        size: bytes on disk of all its folders and masks.
        files: path, size and time of change of its slices and masks.
    """

    digest: str
    size: int
    files: tuple[tuple[Path, int, int], ...] = ()

    def unchanged(self) -> bool:
        """Return whether all files are as they were."""
        try:
            return all(_state(path) == (path, size, changed) for path, size, changed in self.files)
        except OSError:
            return False


class SharedFolders:
    """The folders that several records use, with their contents as they were at first use.

    Args:
        records: all images of a run.
        workers: processes that read headers, as for `scan_folders`.
    """

    def __init__(self, records: Iterable[Record], workers: int | None = None) -> None:
        self._workers = workers
        folders = Counter(folder for record in records for folder in _folders(record))
        self._shared = {folder for folder, count in folders.items() if count > 1}
        self._known: OrderedDict[tuple[Path, ...], _Contents] = OrderedDict()
        self._lock = Lock()

    def source(self, record: Record) -> Source | None:
        """Return the digest and size of an image; None if it shares no folder.

        Raises:
            OSError: a file cannot be read.
        """
        contents = self._contents(record)
        if contents is None:
            return None
        masks = masks_of(record)
        size = contents.size + sum(map(source_bytes, masks))
        return Source(joined_digest(contents.digest, masks), size)

    def with_slices(self, record: Record, source: Source) -> tuple[Record, Source | None]:
        """Return a record that knows its slices, and a source that knows their state; no source if there are none.

        Raises:
            OSError: a file cannot be read.
        """
        contents = self._contents(record)
        slices = None if contents is None else contents.slices.get(record.path)
        if contents is None or slices is None:
            return record, None
        states = contents.files
        files = [states[path] for path in {frame.path for frame in slices.frames} if path in states]
        masks = [_state(path) for path in masks_of(record)]
        series = replace(record.series or SeriesSource(), slices=slices)
        return replace(record, series=series), replace(source, files=(*sorted(files), *masks))

    def _contents(self, record: Record) -> _Contents | None:
        folders = _folders(record)
        if self._shared.isdisjoint(folders):
            return None
        with self._lock:  # several threads would read the same folder
            if folders not in self._known:
                self._known[folders] = _Contents(folders, self._workers)
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            self._known.move_to_end(folders)
            contents = self._known[folders]
            _ = contents.digest  # computed once
            return contents


class _Contents:
    """The files of some folders, as they are now; digest and slices are computed when they are needed."""

    def __init__(self, folders: tuple[Path, ...], workers: int | None) -> None:
        self._folders, self._workers = folders, workers
        self._states: dict[Path, FolderState] = {folder: folder_state(folder) for folder in folders}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for folder in self._folders for _, size, _ in self._states[folder])

    @cached_property
    def digest(self) -> bytes:
        """The digests of the folders, one after the other."""
        return b"".join(folder_digest(folder, self._states[folder]) for folder in self._folders)

    @cached_property
    def files(self) -> dict[Path, tuple[Path, int, int]]:
        """Path, size and time of change by path."""
        return {
            folder / name: (folder / name, size, changed)
            for folder, state in self._states.items()
            for name, size, changed in state
        }

    @cached_property
    def slices(self) -> dict[Path, Stack | Rejected]:
        """What each file belongs to; the first, as for `series_of`."""
        results = scan_folders(self._folders, workers=self._workers).results
        return {frame.path: found for found in reversed(results) for frame in found.frames}


def _folders(record: Record) -> tuple[Path, ...]:
    """Return the folders of a DICOM image that is named by a file; none of others and of several channels."""
    if record.channels or suffix_of(record.path.name) is not None:
        return ()
    folders = folders_of(record.path, record.series)
    return () if folders[0] == record.path else folders


def _state(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns
