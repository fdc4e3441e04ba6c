"""Stacks of slices: which slices form a volume, and which do not, with the reason.

Slices are grouped by patient, study and series, in any folders, then by plane and size. If several have
one position, an attribute that differs (echo time, b-value, …) splits them into volumes, as does a contrast that
alternates along them; copies are dropped; remaining duplicates are rejected. Gaps are then measured along the normal:
small deviations are accepted with a note, missing and unevenly spaced slices are named and rejected.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign.data.readers.dicom_files import pixel_digest
from viewalign.data.readers.dicom_slices import Frame, Series, has_type
from viewalign.data.readers.dicom_spacing import (
    SAME_PLACE,
    ConvertibleError,
    check_gaps,
    check_line,
    check_tilt,
)
from viewalign.errors import ExcludedImageError
from viewalign.utils.text import counted

_FEWEST_OF_PASS = 4
_CONTRASTS = ("EchoTime", "DiffusionBValue", "InversionTime", "ImageType")
"""Attributes that are the same in all slices of a volume, or change from one part of it to the next."""
_SAME_CONTRAST = 0.1
"""Largest relative difference of two numbers of one contrast, which rounding or the scanner's timing make."""


@dataclass(frozen=True)
class Stack:
    """Slices of one volume, in the order of their positions along the normal.

    Attributes:
        frames: one per slice, first is D = 0.
        spacing: mm along (D, H, W).
        direction: 3×3; columns are the LPS directions of the x, y and z index.
        label: distinguishes it from other volumes of its series, or empty.
        note: an accepted problem, as a sentence, or empty.
    """

    frames: tuple[Frame, ...]
    spacing: tuple[float, float, float]
    direction: NDArray[np.float64]
    label: str = ""
    note: str = ""

    @property
    def series(self) -> Series:
        """The series that the slices belong to."""
        return self.frames[0].series

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (D, H, W)."""
        return len(self.frames), *self.frames[0].size

    @cached_property
    def path(self) -> Path:
        """The file that names the stack: the first by name."""
        return min(frame.path for frame in self.frames)


@dataclass(frozen=True)
class Rejected:
    """Slices that form no volume, and why; `convertible` if dcm2niix may be able to place them."""

    frames: tuple[Frame, ...]
    reason: str
    convertible: bool = False

    @property
    def series(self) -> Series:
        """The series that the slices belong to."""
        return self.frames[0].series

    @cached_property
    def path(self) -> Path:
        """The first of their files by name."""
        return min(frame.path for frame in self.frames)


def sort_into_stacks(frames: Iterable[Frame]) -> list[Stack | Rejected]:
    """Sort slices, of any number of series, into stacks and rejected slices."""
    return [result for series in _series(frames) for result in _over_folders(series)]


def related(frames: Iterable[Frame], path: Path) -> list[Frame]:
    """Return the slices that `sort_into_stacks` puts together with those of a file."""
    return [frame for group in _series(frames) if any(each.is_of(path) for each in group) for frame in group]


def _over_folders(series: Sequence[Frame]) -> list[Stack | Rejected]:
    """Sort the slices of a series; folder by folder if fewer are rejected so, as with one UID for several series."""
    whole = _sorted(series)
    folders = _grouped(series, lambda frame: frame.folder)
    if len(folders) == 1 or _lost(whole) == 0:
        return whole
    each = [result for folder in folders for result in _sorted(folder)]
    if _lost(each) >= _lost(whole):
        return whole
    note = "slices of the same series in other folders do not fit"
    return [_noted(result, note) if isinstance(result, Stack) else result for result in each]


def _lost(results: Iterable[Stack | Rejected]) -> int:
    return sum(len(result.frames) for result in results if isinstance(result, Rejected))


def _noted(stack: Stack, note: str) -> Stack:
    return replace(stack, note="; ".join(filter(None, (stack.note, note))))


def _sorted(series: Sequence[Frame]) -> list[Stack | Rejected]:
    results: list[Stack | Rejected] = []
    if mosaics := [frame for frame in series if has_type(frame, "MOSAIC")]:
        reason = "it is a mosaic: all slices of a volume are tiles of one picture"
        results.append(Rejected(tuple(mosaics), reason, convertible=True))
    planes = _by_plane([frame for frame in series if not has_type(frame, "MOSAIC")])
    for plane in planes:
        if len(plane) > 1:
            results.extend(_stacks_of_plane(plane))
    if lone := [frame for plane in planes if len(plane) == 1 for frame in plane]:
        results.append(Rejected(tuple(lone), _why_lone(lone, len(series))))
    return _one_per_file(results)


def _one_per_file(results: Sequence[Stack | Rejected]) -> list[Stack | Rejected]:
    """Reject volumes of different planes or sizes that are in one file, as a file names one image."""
    stacks = [result for result in results if isinstance(result, Stack)]
    volumes = Counter(path for stack in stacks for path in {frame.path for frame in stack.frames})
    return [
        Rejected(result.frames, f"one file holds {most} volumes", convertible=True)
        if isinstance(result, Stack) and (most := max(volumes[frame.path] for frame in result.frames)) > 1
        else result
        for result in results
    ]


def _series(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Group slices by patient, study and series; series of one slice each that share number and description are one."""
    groups = _grouped(frames, lambda frame: frame.series.key)
    single = [frame for group in groups if len(group) == 1 for frame in group]
    joined = _grouped(single, lambda frame: (*frame.series.key[:2], frame.series.number, frame.series.description))
    return [group for group in groups if len(group) > 1] + joined


def _why_lone(lone: Sequence[Frame], series: int) -> str:
    """Return why slices with a unique plane and size are no volume; a localizer's series may have many."""
    kind = "localizers" if all(map(_is_localizer, lone)) else "no volume but one slice each"
    if len(lone) == 1:
        kind = "a localizer" if _is_localizer(lone[0]) else "no volume but one slice"
    if series == 1:
        return f"it is {kind}"
    return f"{counted(len(lone), 'slice')} of {series} in planes or sizes of their own: {kind}"


def _is_localizer(frame: Frame) -> bool:
    return has_type(frame, "LOCALIZER")


def _stacks_of_plane(frames: Sequence[Frame]) -> list[Stack | Rejected]:
    kept, copies = _without_copies(frames)
    volumes, note = (_part(kept), "") if _doubled(kept) else _alternating(kept)
    if len({frame.path for frame in kept}) < sum(len({frame.path for frame in volume}) for volume in volumes.values()):
        return [Rejected(tuple(kept), f"one file holds {len(volumes)} volumes", convertible=True)]
    results = [result for label, volume in volumes.items() for result in _volumes(volume, label, copies)]
    return [_noted(result, note) if isinstance(result, Stack) else result for result in results]


def _volumes(frames: Sequence[Frame], label: str, copies: int) -> list[Stack | Rejected]:
    """Stack slices, or those of each acquisition if they do not fit together: passes that overlap or leave a gap."""
    whole = _attempt(frames, label, copies)
    passes = _by_trait(frames, "AcquisitionNumber")
    if isinstance(whole, Rejected) and len(passes) > 1:
        labels = (f"{label}_AcquisitionNumber-{number}".lstrip("_") for number in passes)
        each = [_attempt(group, name, copies) for name, group in zip(labels, passes.values(), strict=True)]
        sizes = [len(result.frames) for result in each if isinstance(result, Stack)]
        others = [len(result.frames) for result in each if isinstance(result, Rejected)]
        if sizes and min(sizes) >= _FEWEST_OF_PASS and max(others, default=1) == 1:
            return each
    return [whole]


def _attempt(frames: Sequence[Frame], label: str, copies: int) -> Stack | Rejected:
    try:
        return _stack(frames, label, copies)
    except ExcludedImageError as exclusion:
        return Rejected(tuple(frames), str(exclusion), isinstance(exclusion, ConvertibleError))


def _by_plane(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Separate slices whose planes differ by more than half a degree, or whose sizes differ."""
    planes: list[list[Frame]] = []
    known: dict[Hashable, list[Frame]] = {}  # almost all slices equal one of a few
    for frame in frames:
        key = frame.orientation, frame.size, frame.pixel_size
        if key not in known:
            known[key] = next((plane for plane in planes if _coplanar(plane[0], frame)), [])
            if not known[key]:
                planes.append(known[key])
        known[key].append(frame)
    return planes


def _coplanar(first: Frame, second: Frame) -> bool:
    turned = np.abs(np.subtract(first.orientation, second.orientation)).max()
    return bool(first.size == second.size and turned < 0.01 and np.allclose(first.pixel_size, second.pixel_size, 1e-3))


def _without_copies(frames: Sequence[Frame]) -> tuple[list[Frame], int]:
    """Drop slices with the same position, attributes and pixels; identifiers alone may be wrong."""
    kept: list[Frame] = []
    for place in _grouped(frames, lambda frame: (*(round(x, 2) for x in frame.position), frame.traits)):
        files = {frame.path for frame in place}
        kept.extend({_pixels(frame): frame for frame in reversed(place)}.values() if len(files) > 1 else place)
    return kept, len(frames) - len(kept)


def _pixels(frame: Frame) -> tuple[bytes, int]:
    return pixel_digest(frame.path), frame.number


def _part(frames: Sequence[Frame]) -> dict[str, list[Frame]]:
    """Split slices of one position into volumes, by the first attribute that separates them, or by their folders.

    A slice with a unique AcquisitionNumber, such as one for bolus tracking, is ignored.
    """
    if not _doubled(frames):
        return {"": list(frames)}
    for key in (*dict.fromkeys(key for frame in frames for key, _ in frame.traits), "folder"):
        groups = _by_trait(frames, key)
        sizes = [len(group) for group in groups.values()]
        if len(groups) < 2 or max(sizes) < 2 or (min(sizes) < 2 and key != "AcquisitionNumber"):
            continue
        inner = {value: _part(group) for value, group in groups.items()}
        if not any(_doubled(volume) for volumes in inner.values() for volume in volumes.values()):
            return {
                _label(key, value, number) + (f"_{more}" if more else ""): volume
                for number, (value, volumes) in enumerate(inner.items(), 1)
                for more, volume in volumes.items()
            }
    return {"": list(frames)}


def _alternating(frames: Sequence[Frame]) -> tuple[dict[str, list[Frame]], str]:
    """Split slices by a contrast that alternates along them: volumes whose slices lie between each other's.

    Returns:
        Slices by the volumes' labels; and a note if a contrast alternates but does not make regular volumes.
    """
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    ordered = sorted(frames, key=lambda frame: float(np.dot(normal, frame.position)))
    note = ""
    for key in _CONTRASTS:
        values, groups = _contrasts(ordered, key), defaultdict(list)
        for frame, value in zip(ordered, values, strict=True):
            groups[value].append(frame)
        changes = sum(one != other for one, other in pairwise(values))
        if sum(len(group) > 1 for group in groups.values()) < 2 or changes < len(groups):
            continue
        # ImageType may tell interpolated slices from the measured ones between them, which are one volume.
        known = key != "ImageType" and "" not in groups
        if known and all(isinstance(_attempt(group, "", 0), Stack) for group in groups.values()):
            return {_label(key, value, 0): group for value, group in groups.items()}, ""
        note = f"{key} changes {changes} times along its slices, which may be of several volumes"
    return {"": list(frames)}, note


def _contrasts(frames: Sequence[Frame], key: str) -> list[str]:
    """Return an attribute of each slice; of numbers that hardly differ the smallest."""
    values = [dict(frame.traits).get(key, "") for frame in frames]
    try:
        numbers = sorted(set(values), key=float)
    except ValueError:
        return values
    first, same = numbers[0], {}
    for number in numbers:
        if float(number) - float(first) > _SAME_CONTRAST * abs(float(number)):
            first = number
        same[number] = first
    return [same[value] for value in values]


def _by_trait(frames: Sequence[Frame], key: str) -> dict[str, list[Frame]]:
    groups = defaultdict(list)
    for frame in frames:
        groups[frame.folder if key == "folder" else dict(frame.traits).get(key, "")].append(frame)
    return groups


def _label(key: str, value: str, number: int) -> str:
    return f"{key}-{number if key == 'folder' else value}"


def _stack(frames: Sequence[Frame], label: str, copies: int) -> Stack:
    first = frames[0]
    if _is_localizer(first):
        raise ExcludedImageError("it is a localizer, no volume")
    if len(frames) < 2:
        raise ExcludedImageError("it is no volume but one slice")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    heights = np.array([np.dot(normal, frame.position) for frame in frames])
    order = np.argsort(heights, kind="stable")
    ordered, heights = tuple(frames[k] for k in order), heights[order]
    notes = [check_gaps(ordered, heights)]
    if copies:
        notes.insert(0, f"copies of {counted(copies, 'slice')} were dropped")
    travel = np.subtract(ordered[-1].position, ordered[0].position)
    step = float(np.linalg.norm(travel)) / (len(frames) - 1)
    check_line(ordered, travel)
    check_tilt(travel, normal)
    leaning = float(np.linalg.norm(travel - np.dot(travel, normal) * normal)) > min(first.pixel_size) / 2
    depth = travel / np.linalg.norm(travel) if leaning else normal  # rounding of positions is not a tilt
    direction = np.stack([first.orientation[:3], first.orientation[3:], depth], axis=1)
    return Stack(ordered, (step, *first.pixel_size), direction, label, "; ".join(filter(None, notes)))


def _doubled(frames: Sequence[Frame]) -> bool:
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    heights = np.sort([np.dot(normal, frame.position) for frame in frames])
    return bool((np.diff(heights) < SAME_PLACE).any())


def _grouped(frames: Iterable[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    groups: dict[Hashable, list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    return list(groups.values())
