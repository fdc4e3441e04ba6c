"""Slices as PNG data, in the few bytes that they need: no plotting library is wanted for that."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(image: NDArray[np.uint8]) -> bytes:
    """Write an image (rows, columns) in grey or (rows, columns, 3) in colour as PNG (ISO/IEC 15948)."""
    rows, columns = image.shape[:2]
    colour = 2 if image.ndim == 3 else 0
    flat = np.ascontiguousarray(image).reshape(rows, -1)
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), flat], axis=1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, colour, 0, 0, 0)
    return (
        _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_url(image: NDArray[np.uint8]) -> str:
    """Return an image as an address that holds the image itself."""
    return "data:image/png;base64," + base64.b64encode(encode(image)).decode("ascii")
