"""Files with the same content, found without reading them all.

A gzip stream ends with the checksum and length of what it unpacks to, so eight bytes distinguish two `.nii.gz` whatever
their names, dates and compression. Other files are compared by size and their first and last 64 KB, DICOM stacks by the
instances they consist of. A packed and a plain file, such as `x.nii.gz` and `x.nii`, are compared by unpacked size and
first 64 KB. Only files that agree in this are read whole, for SHA-256.

The same image in another format or number type is found by `prepare`, which reads the voxels (`near_copies`).
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

from viewalign.data.file_types import suffix_of
from viewalign.data.near_copies import Groups
from viewalign.data.readers.dicom_files import pixel_digest
from viewalign.data.readers.dicom_slices import Frame
from viewalign.data.readers.nifti import is_packed, open_stream
from viewalign.errors import ExcludedImageError

_EDGE = 1 << 16
_PIECE = 1 << 20


def find_duplicates(paths: Sequence[Path], slices: Mapping[Path, Sequence[Frame]] | None = None) -> list[list[Path]]:
    """Return groups of two or more files whose content is the same, byte for byte after unpacking.

    Args:
        paths: the files.
        slices: of those that name a DICOM series; others without a known suffix are not compared.
    """
    slices = slices or {}
    packing = {path: _unpacked_size(path) for path in paths if suffix_of(path.name) in (".nii", ".nii.gz")}
    candidates = _grouped(paths, lambda path: _quick_key(path, slices.get(path)))
    for alike in _grouped([path for path, size in packing.items() if size is not None], packing.__getitem__):
        if len({is_packed(path) for path in alike}) == 2:  # files of one packing were compared above
            candidates.extend(_grouped(alike, _head_key))
    number = {path: k for k, path in enumerate(paths)}
    groups = Groups(len(paths))
    for alike in candidates:
        for group in _grouped(alike, lambda path: _whole_key(path, slices.get(path))):
            for path in group[1:]:
                groups.join(number[group[0]], number[path])
    return [[paths[k] for k in group] for group in groups.several()]


def _unpacked_size(path: Path) -> int | None:
    """Return the size of a file after unpacking, modulo 4 GiB as gzip states it; None if it cannot be read."""
    try:
        size = path.stat().st_size
        if not is_packed(path):
            return size % (1 << 32)
        with path.open("rb") as file:
            file.seek(max(0, size - 4))
            return int.from_bytes(file.read(4), "little")
    except OSError:
        return None


def _grouped(paths: Sequence[Path], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    found: dict[Hashable, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            found[key(path)].append(path)
        except (OSError, EOFError, zlib.error, ExcludedImageError):
            continue  # unreadable files are reported elsewhere
    return [group for group in found.values() if len(group) > 1]


def _quick_key(path: Path, slices: Sequence[Frame] | None) -> Hashable:
    suffix = suffix_of(path.name)
    if suffix in (".nhdr", ".mhd", ".hdr"):
        return path  # the voxels lie in another file, so a copy of this one may stand for other voxels
    if suffix is None:
        return frozenset((frame.instance, frame.number) for frame in slices) if slices else path
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_EDGE)
        file.seek(max(0, size - _EDGE))
        tail = file.read(_EDGE)
    if head[:2] == b"\x1f\x8b":
        return "gzip", tail[-8:]
    return "plain", size, hashlib.sha256(head + tail).digest()


def _head_key(path: Path) -> Hashable:
    with open_stream(path) as stream:
        return hashlib.sha256(stream.read(_EDGE)).digest()


def _whole_key(path: Path, slices: Sequence[Frame] | None) -> Hashable:
    if slices:  # identifiers may be empty, or those of other images
        return tuple((pixel_digest(frame.path), frame.number) for frame in slices)
    digest = hashlib.sha256()
    with open_stream(path) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.digest()
