"""Detects whether the source file of an image has changed, without reading all of it.

A digest covers the size of a file and four pieces of 64 KiB, spread from its first byte to its last; files of up to
256 KiB are read whole. A gzip stream ends with the checksum of what it unpacks to, so that any change of a `.nii.gz` is
detected. A change of an uncompressed file between the pieces that keeps its size is not detected.
"""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock

from viewalign.data.catalogue import Record, SeriesSource
from viewalign.data.file_types import suffix_of
from viewalign.data.readers.dicom_folders import FolderState, folder_state, folders_of
from viewalign.data.readers.headers import detached_data
from viewalign.utils.io import is_file

_PIECE, _PIECES = 1 << 16, 4
_REMEMBERED = 8  # DICOM folders
_one_at_a_time = Lock()


def content_digest(path: Path) -> str:
    """Return hex digits that change when an image file or DICOM folder does.

    Raises:
        OSError: it cannot be read.
    """
    return _source_digest(path, None).hex()


def record_digest(record: Record) -> str:
    """Return 32 hex digits that change when the file of an image, of a channel or of one of its masks does.

    Raises:
        OSError: a file cannot be read, or is not a regular file.
    """
    if record.channels:
        digests = "".join(record_digest(channel) for channel in record.channels)
        return hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()
    own = _source_digest(record.path, record.series)
    return joined_digest(own, masks_of(record))


def joined_digest(own: bytes, masks: Iterable[Path]) -> str:
    """Return the digest of a record from that of its image and from its masks.

    Raises:
        OSError: a mask cannot be read, or is not a regular file.
    """
    digest = hashlib.blake2b(own, digest_size=16)
    for path in masks:
        digest.update(_source_digest(path, None))
    return digest.hexdigest()


def masks_of(record: Record) -> list[Path]:
    """Return the files of the masks that a catalogue names for an image."""
    return [path for path in (record.anonymisation_mask, record.anatomy_mask) if path is not None]


def _source_digest(path: Path, series: SeriesSource | None) -> bytes:
    if suffix_of(path.name) is None:
        path.stat()  # the folder may exist without the file
        folders = folders_of(path, series)
        with _one_at_a_time:  # several threads would read the same folder
            return b"".join(_folder_digest(folder, folder_state(folder)) for folder in folders)
    own = file_digest(path)  # first, since it rejects a pipe, which would block
    return own + b"".join(file_digest(detached) for detached in detached_data(path) if is_file(detached))


def folder_digest(folder: Path, state: FolderState) -> bytes:
    """Return the digest of all files of a folder in a state.

    Raises:
        OSError: a file cannot be read, or is not a regular file.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, _, _ in state:
        digest.update(name.encode("utf-8", "surrogateescape") + file_digest(folder / name))
    return digest.digest()


_folder_digest = lru_cache(maxsize=_REMEMBERED)(folder_digest)


def file_digest(path: Path) -> bytes:
    """Return the digest of a single file, without others that belong to its image.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    digest = hashlib.blake2b(str(status.st_size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in _starts(status.st_size):
            file.seek(start)
            digest.update(file.read(_PIECE))
    return digest.digest()


def _starts(size: int) -> Iterator[int]:
    if size <= _PIECE * _PIECES:
        yield from range(0, size, _PIECE)
    else:
        yield from ((size - _PIECE) * piece // (_PIECES - 1) for piece in range(_PIECES))
