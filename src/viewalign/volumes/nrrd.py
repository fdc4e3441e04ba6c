"""The one thing ITK leaves out when it reads a NRRD file: the checksum of its gzip stream."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

from viewalign.errors import RefusedImageError

_HEADER = 1 << 20
_PIECE = 1 << 20
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def check_stream(path: Path) -> None:
    """Unpack the gzip stream of a `.nrrd` or `.nhdr` file once, for its checksum; other encodings are left alone.

    Raises:
        RefusedImageError: the stream is damaged or ends too early, or holds nothing but one value, which would
            otherwise be found only after memory was taken for all of it.
    """
    where = _stream_of(path)
    if where is None:
        return
    data, offset = where
    unpacker = zlib.decompressobj(wbits=31)
    values: set[int] = set()  # of all bytes, as long as there is but one
    try:
        with data.open("rb") as file:
            file.seek(offset)
            while not unpacker.eof and (piece := file.read(_PIECE)):
                while piece and not unpacker.eof:
                    unpacked = unpacker.decompress(piece, _PIECE * 16)
                    if len(values) < 2:
                        values.update(unpacked[:1], unpacked[-1:])
                        values.update(unpacked.strip(unpacked[:1])[:1])  # whatever is not like the first
                    piece = unpacker.unconsumed_tail
    except zlib.error as error:
        raise RefusedImageError(f"the file is damaged: its compressed voxels cannot be unpacked ({error})") from None
    except OSError as error:
        raise RefusedImageError(f"its voxels cannot be read: {error.strerror}") from None
    if not unpacker.eof:
        raise RefusedImageError("the file is truncated: the compressed stream ends too early")
    if len(values) == 1:
        raise RefusedImageError(
            "all voxels are zero" if values == {0} else "the image is constant: all bytes are alike"
        )


def _stream_of(path: Path) -> tuple[Path, int] | None:
    """Return the file and the byte at which the gzip stream begins, or None where there is none to check."""
    with path.open("rb") as file:
        head = file.read(_HEADER)
    end = _BLANK_LINE.search(head)
    fields = head[: end.start()] if end else head
    if not re.search(rb"^encoding:\s*(gzip|gz)\s*$", fields, re.MULTILINE) or re.search(
        rb"^(byte|line) ?skip:", fields, re.M
    ):
        return None
    detached = re.search(rb"^data ?file:\s*(.+?)\s*$", fields, re.MULTILINE)
    if detached is None:
        return (path, end.end()) if end else None
    data = path.parent / os.fsdecode(detached.group(1))
    return (data, 0) if data.is_file() else None
