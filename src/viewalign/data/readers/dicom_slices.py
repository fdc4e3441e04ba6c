"""Slices of DICOM series, as their headers describe them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import ExcludedImageError


class NoSliceError(ExcludedImageError):
    """A complete image that is no slice of a volume, such as a screenshot; the text is the reason."""


@dataclass(frozen=True)
class Series:
    """Attributes that all slices of a series share, and that identify it."""

    uid: str
    study: str
    patient: str
    number: int | None
    description: str
    modality: str
    units: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies the series with its patient: some anonymisers use one SeriesInstanceUID for several patients."""
        return self.patient, self.study, self.uid


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice. There are millions, so that what slices have in common is one object, and the path is put together.

    Attributes:
        folder: that of its file.
        file: the name of its file.
        number: which frame of the file, from 0.
        count: frames in the file.
        instance: SOPInstanceUID of the file.
        position: centre of its first pixel: (x, y, z) in mm, LPS.
        orientation: unit vectors along a row (index x) and down a column (index y), six numbers.
        pixel_size: mm between rows (H) and between columns (W).
        size: (rows, columns).
        traits: may distinguish volumes of one series (echo time, b-value …), by DICOM keyword.
        scale: slope and intercept that turn its stored numbers into values.
        order: InstanceNumber, or None.
    """

    series: Series
    folder: str
    file: str
    number: int
    count: int
    instance: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_size: tuple[float, float]
    size: tuple[int, int]
    traits: tuple[tuple[str, str], ...]
    scale: tuple[float, float] = (1.0, 0.0)
    order: int | None = None

    @property
    def path(self) -> Path:
        """Its file."""
        return Path(self.folder, self.file)

    def is_of(self, path: Path) -> bool:
        """Return whether this is its file."""
        return self.file == path.name and self.path == path

    @property
    def name(self) -> str:
        """Its name in messages: the file, and its frame."""
        return self.file if self.count == 1 else f"frame {self.number + 1} of {self.file}"

    def corners(self) -> NDArray[np.float64]:
        """Return the centres of its four outermost pixels: (4, 3) in mm, LPS."""
        along = (self.size[1] - 1) * self.pixel_size[1] * np.array(self.orientation[:3])
        down = (self.size[0] - 1) * self.pixel_size[0] * np.array(self.orientation[3:])
        return np.array(self.position) + np.stack([0 * along, along, down, along + down])


def has_type(frame: Frame, word: str) -> bool:
    """Return whether ImageType or FrameType of a slice contains a word, such as LOCALIZER."""
    return any(word in value for key, value in frame.traits if key in ("ImageType", "FrameType"))


def is_phase(frame: Frame) -> bool:
    """Say whether a slice shows the phase of a complex signal, by ImageType or FrameType."""
    return any("'P'" in value or "PHASE" in value for key, value in frame.traits if key in ("ImageType", "FrameType"))
