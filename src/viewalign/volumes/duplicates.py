"""Files with the same content, found without reading them all.

A gzip stream ends with the checksum and length of what it unpacks to, so eight bytes tell two `.nii.gz` apart whatever
their names, dates and compression. Other files are compared by size and their first and last 64 KB, DICOM stacks by the
instances they consist of. Only files that agree in this are read whole, for SHA-256.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from viewalign.errors import RefusedImageError
from viewalign.volumes.dicom.folders import stack_of
from viewalign.volumes.filetypes import suffix_of
from viewalign.volumes.nifti import open_stream

_EDGE = 1 << 16
_PIECE = 1 << 20


def find_duplicates(paths: Sequence[Path]) -> list[list[Path]]:
    """Return groups of two or more files whose content is the same, byte for byte after unpacking."""
    groups: list[list[Path]] = []
    for alike in _grouped(paths, _quick_key):
        groups.extend(_grouped(alike, _whole_key))
    return groups


def _grouped(paths: Sequence[Path], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    found: dict[Hashable, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            found[key(path)].append(path)
        except (OSError, EOFError, zlib.error, RefusedImageError):
            continue  # unreadable files are told elsewhere
    return [group for group in found.values() if len(group) > 1]


def _quick_key(path: Path) -> Hashable:
    suffix = suffix_of(path.name)
    if suffix in (".nhdr", ".mhd"):
        return path  # the voxels lie in another file, so a copy of this one may stand for other voxels
    if suffix is None:
        return frozenset((frame.instance, frame.number) for frame in stack_of(path).frames)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_EDGE)
        file.seek(max(0, size - _EDGE))
        tail = file.read(_EDGE)
    if head[:2] == b"\x1f\x8b":
        return "gzip", tail[-8:]
    return "plain", size, hashlib.sha256(head + tail).digest()


def _whole_key(path: Path) -> Hashable:
    if suffix_of(path.name) is None:
        return "dicom"
    digest = hashlib.sha256()
    with open_stream(path) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.digest()
