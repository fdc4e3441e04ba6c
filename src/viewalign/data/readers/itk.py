"""SimpleITK, typed as `Any`, without warnings, and with the output of its C code caught."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from viewalign.errors import EmptyImageError, ExcludedImageError, os_reason
from viewalign.utils.io import is_file

Triple = tuple[float, float, float]
sitk: Any = SimpleITK  # its functions carry no type hints
sitk.ProcessObject.SetGlobalWarningDisplay(False)


_STDERR = threading.RLock()
"""Held by the thread that replaces stderr; two that did it at once could leave the file of one in its place."""


@contextmanager
def itk_messages() -> Iterator[list[str]]:
    """Catch what ITK's C code prints on stderr; the list is filled when the block ends.

    MetaImage reports damaged data only by printing `Uncompress failed`.
    """
    messages: list[str] = []
    with _STDERR, tempfile.TemporaryFile() as sink:
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            messages.extend(sink.read().decode(errors="replace").splitlines())


def itk_reason(error: RuntimeError) -> str:
    """Return the last line of an ITK error, which is the cause."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (
        re.sub(r"^(sitk::ERROR:|ITK ERROR:|Reason:)\s*|\(0x[0-9a-f]+\)", "", lines[-1]) if lines else "no reason given"
    )


def header_reader(path: Path) -> Any:
    """Return an ITK reader that has read the header of a file.

    Raises:
        ExcludedImageError: it cannot.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with itk_messages():
            reader.ReadImageInformation()
    except RuntimeError as error:
        reason = itk_reason(error)
        if "Unable to determine ImageIO reader" in reason:
            reason = "its format is not that of its name"
        raise ExcludedImageError(f"its header cannot be read: {reason}") from None
    return reader


def geometry_of(reader: Any, unit: float = 1.0) -> tuple[tuple[int, ...], Triple, Triple, NDArray[np.float64]]:
    """Return size (x, y, z, …), spacing (D, H, W) and origin in mm, and directions, for lengths in `unit` mm."""
    dimension = reader.GetDimension()
    direction = np.array(reader.GetDirection(), dtype=np.float64).reshape(dimension, dimension)[:3, :3]
    x, y, z = (abs(float(value)) * unit for value in reader.GetSpacing()[:3])
    origin = tuple(float(value) * unit for value in reader.GetOrigin()[:3])
    return tuple(int(n) for n in reader.GetSize()), (z, y, x), (origin[0], origin[1], origin[2]), direction


_LINE = re.compile(rb"[^\x00-\x1f\x7f=]+=[^\x00-\x08\x0e-\x1f\x7f]*")  # ITK writes keys such as `dim[0]`
_LONGEST_LINE = 32768
_MOST_LINES = 5000
_LONGEST_NAME = 255
_MOST_AXES = 10
_SCALING = {"ElementToIntensityFunctionSlope": 1.0, "ElementToIntensityFunctionOffset": 0.0}
"""Keys of a linear function from stored to actual values, with those that change nothing."""
_PER_AXIS = ("DimSize", "ElementSpacing", "Offset", "Position", "Origin", "ElementSize")
_PER_AXIS_SQUARED = ("TransformMatrix", "Rotation", "Orientation")


def check_header(path: Path) -> str:
    """Check that every line of the header is `Key = value`, and that lists have as many numbers as there are axes.

    Returns:
        A note on a scaling of the values, which ITK ignores; or "".

    Raises:
        ExcludedImageError: the reason names the line.
    """
    fields = _fields(path)
    if "ElementDataFile" not in fields:
        raise ExcludedImageError("its header is damaged: it does not say where its voxels are (ElementDataFile)")
    if len(fields["ElementDataFile"].encode()) > _LONGEST_NAME:
        raise ExcludedImageError("its header is damaged: the name in ElementDataFile is too long")
    axes = _axes(fields.get("NDims", ""))
    counts = {**dict.fromkeys(_PER_AXIS, axes), **dict.fromkeys(_PER_AXIS_SQUARED, axes * axes)}
    for key, count in counts.items():
        if key in fields and len(fields[key].split()) != count:
            raise ExcludedImageError(f"its header is damaged: {key} has not {count} numbers for {axes} axes")
    scaling = [f"{key} = {fields[key]}" for key, plain in _SCALING.items() if not _is(fields.get(key), plain)]
    return f"its values are not scaled by {' and '.join(scaling)} of its header, as in ITK" if scaling else ""


def _is(text: str | None, value: float) -> bool:
    try:
        return text is None or float(text) == value
    except ValueError:
        return False


def _axes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_AXES:
        raise ExcludedImageError("its header is damaged: NDims is no number of axes")
    return int(text)


def _fields(path: Path) -> dict[str, str]:
    """Return keys and values up to `ElementDataFile`, after which the voxels begin."""
    fields: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            for number in range(1, _MOST_LINES):
                line = file.readline(_LONGEST_LINE)
                if not line.strip():
                    return fields
                cut = not line.endswith(b"\n") and len(line) == _LONGEST_LINE
                if not _LINE.fullmatch(line.rstrip(b"\r\n")) or cut:
                    raise ExcludedImageError(f"its header is damaged: line {number} is not of the form `Key = value`")
                key, _, value = line.decode("utf-8", "replace").partition("=")
                fields[key.strip()] = value.strip()
                if key.strip() == "ElementDataFile":
                    return fields
    except OSError as error:
        raise ExcludedImageError(f"its header cannot be read: {os_reason(error)}") from None
    raise ExcludedImageError("its header is damaged: it has no end")


_HEADER = 1 << 20
_PIECE = 1 << 20
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def check_stream(path: Path) -> None:
    """Unpack the gzip stream of a `.nrrd` or `.nhdr` file once, for its checksum; other encodings are ignored.

    Raises:
        ExcludedImageError: the stream is damaged, ends too early, or has only one value, which would otherwise
            be found only after memory was allocated for all of it.
    """
    where = _stream_of(path)
    if where is None:
        return
    data, offset = where
    unpacker = zlib.decompressobj(wbits=31)
    values: set[int] = set()  # the value of all bytes so far
    try:
        with data.open("rb") as file:
            file.seek(offset)
            while not unpacker.eof and (piece := file.read(_PIECE)):
                while piece and not unpacker.eof:
                    unpacked = unpacker.decompress(piece, _PIECE * 16)
                    if len(values) < 2:
                        values.update(unpacked[:1], unpacked[-1:])
                        if unpacked.count(unpacked[:1]) < len(unpacked):
                            values.update(unpacked.strip(unpacked[:1])[:1])  # the first byte that differs
                    piece = unpacker.unconsumed_tail
    except zlib.error as error:
        raise ExcludedImageError(f"the file is damaged: its compressed voxels cannot be unpacked ({error})") from None
    except OSError as error:
        raise ExcludedImageError(f"its voxels cannot be read: {os_reason(error)}") from None
    if not unpacker.eof:
        raise ExcludedImageError("the file is truncated: the compressed stream ends too early")
    if len(values) == 1:
        if values == {0}:
            raise EmptyImageError
        raise ExcludedImageError("the image is constant: all bytes are equal")


def _stream_of(path: Path) -> tuple[Path, int] | None:
    """Return the file and the first byte of the gzip stream, or None if there is none."""
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
    return (data, 0) if is_file(data) else None
