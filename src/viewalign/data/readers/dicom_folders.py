"""The stacks of a folder, and the stack that a file belongs to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from viewalign.data.readers.dicom_files import Frame, may_be_dicom, read_frames
from viewalign.data.readers.dicom_stacks import Rejected, Stack, sort_into_stacks
from viewalign.errors import ExcludedImageError

_REMEMBERED = 8  # folders; enough for the images of one folder to be prepared in turn


@dataclass(frozen=True)
class FolderScan:
    """What lies in one folder (not below it).

    Attributes:
        stacks: volumes.
        rejected: slices that make none.
        damaged: files that could not be read, with the reason.
        other: DICOM files without an image.
    """

    stacks: tuple[Stack, ...]
    rejected: tuple[Rejected, ...]
    damaged: tuple[tuple[Path, str], ...]
    other: int


def scan_folder(folder: Path) -> FolderScan:
    """Read the headers of all DICOM files of a folder and sort their slices; remembered while nothing changes."""
    return _scan(os.fspath(folder), folder_state(folder))


def stack_of(path: Path) -> Stack:
    """Return the stack that a file belongs to, from all files of its folder.

    Raises:
        RefusedImageError: the file is no DICOM image, or its slices make no volume.
    """
    scan = scan_folder(path.parent)
    for stack in scan.stacks:
        if any(frame.path == path for frame in stack.frames):
            return stack
    for rejected in scan.rejected:
        if any(frame.path == path for frame in rejected.frames):
            raise ExcludedImageError(rejected.reason)
    reason = dict(scan.damaged).get(path)
    raise ExcludedImageError(reason or "it is no image that is read")


def folder_bytes(folder: Path) -> int:
    """Return the size of all files of a folder, which changes when a slice comes, goes or changes its size."""
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())


def folder_state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of all files of a folder, sorted."""
    with os.scandir(folder) as entries:
        files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in files))


@lru_cache(maxsize=_REMEMBERED)
def _scan(folder: str, state: tuple[tuple[str, int, int], ...]) -> FolderScan:
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
    sorted_out = sort_into_stacks(frames)
    return FolderScan(
        tuple(item for item in sorted_out if isinstance(item, Stack)),
        tuple(item for item in sorted_out if isinstance(item, Rejected)),
        tuple(damaged),
        other,
    )
