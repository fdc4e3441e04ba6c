"""What must hold of a MetaImage header before ITK may see it.

ITK's MetaIO copies names and lists of numbers into buffers of fixed size without a look at their length: a damaged
header corrupts its memory and ends the process (`munmap_chunk(): invalid pointer`), and no exception tells it.
"""

from __future__ import annotations

import re
from pathlib import Path

from viewalign.errors import RefusedImageError

_LINE = re.compile(rb"[^\x00-\x1f\x7f=]+=[^\x00-\x08\x0e-\x1f\x7f]*")  # ITK writes keys such as `dim[0]`
_LONGEST_LINE = 32768
_MOST_LINES = 5000
_LONGEST_NAME = 255
_MOST_AXES = 10
_PER_AXIS = ("DimSize", "ElementSpacing", "Offset", "Position", "Origin", "ElementSize")
_PER_AXIS_SQUARED = ("TransformMatrix", "Rotation", "Orientation")


def check_header(path: Path) -> None:
    """Check that every line of the header is `Key = value`, and that lists have as many numbers as there are axes.

    Raises:
        RefusedImageError: the reason names the line.
    """
    fields = _fields(path)
    if "ElementDataFile" not in fields:
        raise RefusedImageError("its header is damaged: it does not say where its voxels are (ElementDataFile)")
    if len(fields["ElementDataFile"].encode()) > _LONGEST_NAME:
        raise RefusedImageError("its header is damaged: the name in ElementDataFile is too long")
    axes = _axes(fields.get("NDims", ""))
    counts = {**dict.fromkeys(_PER_AXIS, axes), **dict.fromkeys(_PER_AXIS_SQUARED, axes * axes)}
    for key, count in counts.items():
        if key in fields and len(fields[key].split()) != count:
            raise RefusedImageError(f"its header is damaged: {key} has not {count} numbers for {axes} axes")


def _axes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_AXES:
        raise RefusedImageError("its header is damaged: NDims is no number of axes")
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
                if not _LINE.fullmatch(line.rstrip(b"\r\n")) or not line.endswith(b"\n"):
                    raise RefusedImageError(f"its header is damaged: line {number} is not of the form `Key = value`")
                key, _, value = line.decode("utf-8", "replace").partition("=")
                fields[key.strip()] = value.strip()
                if key.strip() == "ElementDataFile":
                    return fields
    except OSError as error:
        raise RefusedImageError(f"its header cannot be read: {error.strerror}") from None
    raise RefusedImageError("its header is damaged: it has no end")
