"""One image of an index, with its suspicious properties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.catalogue import SeriesSource
from viewalign.data.geometry import orientation_code
from viewalign.data.readers.headers import Header, Triple, source_bytes
from viewalign.data.sources import ImageRecord
from viewalign.data.sources.walk import printable

FEW_SLICES = 16
FINEST, COARSEST, MOST_UNEQUAL = 0.2, 10.0, 12.0  # mm, mm, longest over shortest edge of a voxel
MOST_TILTED = 30.0  # degrees
SHORTEST_SIDE = 25.0  # mm, of the longest side of an image


@dataclass
class Entry:
    """One image of an index.

    Attributes:
        shape: voxels along (D, H, W) as in the file.
        spacing: mm along (D, H, W).
        orientation: directions of growing x, y and z index, e.g. `LPS`.
        bytes: size on disk.
        units: of PET, where its header states them.
        suspects: what should be checked, as sentences by kind (`audit.KINDS`); empty for an image that looks right.
    """

    dataset: str
    subject: str
    session: str
    name: str
    file: str
    modality: str
    shape: tuple[int, int, int]
    spacing: Triple
    orientation: str
    bytes: int
    suspects: dict[str, str] = field(default_factory=dict)
    units: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return {**vars(self), "shape": list(self.shape), "spacing": list(self.spacing)}


def entry_of(found: ImageRecord, name: str, header: Header) -> Entry:
    """Describe an image by its header."""
    return Entry(
        found.dataset,
        found.subject,
        found.session,
        name,
        printable(found.path),
        found.modality,
        header.shape,
        _rounded(header.spacing),
        orientation_code(header.direction),
        image_bytes(found.path, found.series, header),
        suspicions(header),
        str((found.infos.image or {}).get("units", "")),
    )


def image_bytes(path: Path, series: SeriesSource | None, header: Header) -> int:
    """Return the size on disk of an image; of DICOM, that of its own slices, as series may share a folder.

    Raises:
        OSError: a file cannot be read.
    """
    if header.dicom is None:
        return source_bytes(path, series)
    return sum(file.stat().st_size for file in {frame.path for frame in header.dicom.frames})


def suspicions(header: Header) -> dict[str, str]:
    """Return what is strange about a header that was accepted, as sentences by kind."""
    found = {"header": header.note} if header.note else {}
    return found | geometry_suspicions(header.shape, header.spacing, header.direction)


def geometry_suspicions(
    shape: Sequence[int], spacing: Sequence[float], direction: NDArray[np.float64]
) -> dict[str, str]:
    """Return what is strange about a geometry, as sentences by kind."""
    found = {}
    if min(shape) < FEW_SLICES:
        found["few_slices"] = f"few slices: {min(shape)} along an axis"
    low, high = min(spacing), max(spacing)
    if low < FINEST or high > COARSEST or high / low > MOST_UNEQUAL:
        found["voxel_size"] = "extreme voxel size: " + "×".join(f"{size:.3g}" for size in spacing) + " mm"
    longest = max(count * size for count, size in zip(shape, spacing, strict=True))
    if longest < SHORTEST_SIDE:
        found["field_of_view"] = f"small field of view: its longest side has {longest:.3g} mm"
    if (angle := tilt(direction)) > MOST_TILTED:
        found["orientation"] = f"odd orientation: {angle:.0f}° from the nearest axis of the patient"
    return found


def tilt(direction: NDArray[np.float64]) -> float:
    """Return the largest angle in degrees between an index axis and the world axis nearest to it."""
    cosines = np.abs(direction).max(axis=0) / np.linalg.norm(direction, axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), -1.0, 1.0))))


def _rounded(spacing: Triple) -> Triple:
    z, y, x = (round(size, 6) for size in spacing)
    return z, y, x
