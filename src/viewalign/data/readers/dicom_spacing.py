"""Positions of the slices of a volume: gaps, tilt and shifts, and which of them are rejected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from viewalign.data.readers.dicom_slices import Frame
from viewalign.errors import ExcludedImageError
from viewalign.utils.text import counted

SAME_PLACE = 0.01
"""Slices closer than this, in mm, are at one position."""
_UNEVEN = 0.10  # largest accepted relative difference of a gap from the median
_WORTH_A_NOTE = 0.002
_MOST_TILTED = 2.8  # degrees; beyond, axes would not be perpendicular
_NAMED = 3  # positions named in a reason


class ConvertibleError(ExcludedImageError):
    """Slices whose arrangement this reader does not support, but dcm2niix may."""


def check_tilt(travel: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Reject slices whose positions lean against their normal.

    Args:
        travel: from the first to the last position, in mm.
        normal: of the slices, a unit vector.

    Raises:
        ConvertibleError: they lean by more than 2.8°.
    """
    angle = np.degrees(np.arccos(np.clip(abs(np.dot(travel, normal)) / np.linalg.norm(travel), 0, 1)))
    if angle > _MOST_TILTED:
        raise ConvertibleError(f"its slices are tilted by {angle:.3g}° against their axis, as by a tilted gantry")


def check_gaps(frames: Sequence[Frame], heights: NDArray[np.float64]) -> str:
    """Reject duplicate, missing and unevenly spaced slices; return a note on small deviations.

    Args:
        frames: in the order of their positions.
        heights: along the normal, in mm.

    Raises:
        ConvertibleError: duplicate or unevenly spaced slices.
        ExcludedImageError: slices are missing.
    """
    gaps = np.diff(heights)
    _check_doubled(frames, gaps)
    usual = float(np.median(gaps))
    wrong = [int(k) for k in np.flatnonzero(np.abs(gaps / usual - 1) > _UNEVEN)]
    _check_missing(frames, gaps / usual, wrong)
    off = np.abs(heights - np.linspace(heights[0], heights[-1], len(heights))).max()
    if wrong or off > usual / 2:
        raise ConvertibleError(
            f"its slices are unequally spaced: {gaps.min():.3g} to {gaps.max():.3g} mm (the first odd gap is after "
            f"{frames[wrong[0] if wrong else 0].name})"
        )
    if np.abs(gaps / usual - 1).max() > _WORTH_A_NOTE:
        return (
            f"slices are slightly unequally spaced ({gaps.min():.4g} to {gaps.max():.4g} mm); "
            f"the mean is used, no slice is off by more than {off:.2g} mm"
        )
    return ""


def _check_doubled(frames: Sequence[Frame], gaps: NDArray[np.float64]) -> None:
    doubled = [int(k) for k in np.flatnonzero(gaps < SAME_PLACE)]
    if doubled:
        pairs = (sorted((frames[k].name, frames[k + 1].name)) for k in doubled[:_NAMED])
        named = ", ".join(" and ".join(pair) for pair in pairs)
        raise ConvertibleError(
            f"{counted(len(doubled), 'slice')} with other pixels at the place of another, and nothing in their headers "
            f"tells them apart ({named}{_more(len(doubled))})"
        )


def _check_missing(frames: Sequence[Frame], steps: NDArray[np.float64], wrong: list[int]) -> None:
    """Reject a stack whose only odd gaps are multiples of the usual one, unless numbering continues there."""
    lost = {
        k: round(steps[k]) - 1
        for k in wrong
        if steps[k] > 1.5 and abs(steps[k] - round(steps[k])) < 0.2 and not _consecutive(frames[k], frames[k + 1])
    }
    if lost and len(lost) == len(wrong):
        named = ", ".join(
            f"{count} between {frames[k].name} and {frames[k + 1].name}" for k, count in list(lost.items())[:_NAMED]
        )
        raise ExcludedImageError(f"{counted(sum(lost.values()), 'slice')} missing ({named}{_more(len(lost))})")


def _consecutive(first: Frame, second: Frame) -> bool:
    return first.order is not None and second.order is not None and abs(first.order - second.order) == 1


def check_line(frames: Sequence[Frame], travel: NDArray[np.float64]) -> None:
    """Reject slices that are shifted sideways: their first pixels must be on one line.

    Args:
        frames: in the order of their positions.
        travel: from the first to the last position, in mm.

    Raises:
        ExcludedImageError: one is shifted by more than a pixel.
    """
    share = np.linspace(0, 1, len(frames))[:, None]
    start = np.array([frame.position for frame in frames]) - frames[0].position
    along = travel / np.linalg.norm(travel)
    aside = start - share * travel
    aside -= (aside @ along)[:, None] * along
    if (worst := float(np.linalg.norm(aside, axis=1).max())) > max(frames[0].pixel_size):
        raise ExcludedImageError(f"its slices are shifted sideways against each other, by up to {worst:.3g} mm")


def _more(count: int) -> str:
    return ", …" if count > _NAMED else ""
