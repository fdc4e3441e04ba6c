"""Work on one image of a catalogue: read, prepare, write. A bad file does not affect others."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viewalign.data.catalogue import Record
from viewalign.data.content import label_map_reason
from viewalign.data.fingerprint import masks_of, record_digest
from viewalign.data.grids import grid_difference
from viewalign.data.layout import (
    chunk_and_block,
    done_properties,
    entry_path,
    forget_entry,
    frame_name,
    write_entry,
)
from viewalign.data.preprocessing import Prepared, prepare_channels
from viewalign.data.readers.files import Volume, read_frames, read_mask, read_volume
from viewalign.data.readers.headers import MAX_VOXELS, FramesError, source_bytes
from viewalign.data.readers.suv import suv_factor
from viewalign.data.settings import RECIPE_VERSION, PrepareSettings
from viewalign.data.shared_folders import Source
from viewalign.errors import ExcludedImageError, is_full, os_reason

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """One image to prepare.

    Attributes:
        store: the store's folder.
        record: the image in the catalogue.
        settings: of the preparation.
        quality: its quality score, if the catalogue has one.
        max_voxels: exclude larger images.
        source: the state of its files, if they are in a folder that images share; None looks at the files.
    """

    store: Path
    record: Record
    settings: PrepareSettings
    quality: float | None = None
    max_voxels: int = MAX_VOXELS
    source: Source | None = None

    @property
    def relative(self) -> str:
        """The image's path in the store."""
        return place_of(self.record)


def place_of(record: Record) -> str:
    """Return the path of an image in a store."""
    return entry_path(record.dataset, record.subject, record.session, record.name)


def entries_done(job: Job) -> int:
    """Return the number of entries of the image in the store, from the same source and recipe; 0 if incomplete.

    An image has one entry, or one per frame.
    """
    there = stored_entries(job)
    try:
        wanted = _identity(job) if there else {}
    except OSError:
        return 0
    frames = int(there[0][1].get("frames", 1)) if there else 0
    same = [properties for _, properties in there if _is_of(properties, wanted)]
    return frames if len(same) == len(there) == frames else 0


def _is_of(properties: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether an entry, or one of the frames of an image, was made from the same source and recipe."""
    frame = properties.get("frame")
    identity = wanted if frame is None else {**wanted, "id": frame_name(str(wanted["id"]), int(frame))}
    return all(properties.get(key) == value for key, value in identity.items())


def stored_entries(job: Job) -> list[tuple[str, dict[str, Any]]]:
    """Return path and properties of all complete entries of an image in the store, from any source."""
    place = job.store / job.relative
    marks = sorted(place.parent.glob(f"{glob.escape(place.name)}-frame[0-9][0-9][0-9][0-9].json"))
    frames = [f"{job.relative}{mark.name[len(place.name) :].removesuffix('.json')}" for mark in marks]
    found = [(name, done_properties(job.store, name)) for name in (job.relative, *frames)]
    # Another image may have the name of a frame.
    return [(name, facts) for name, facts in found if facts is not None and (name in frames) == ("frame" in facts)]


def work(job: Job) -> ImageOutcome:
    """Prepare one image; errors are in the outcome, and existing entries are kept."""
    return catch_image_errors(lambda: prepare_one(job), lambda: len(stored_entries(job)))


def prepare_one(job: Job) -> int:
    """Read an image and its masks, prepare them and write them into the store; return the number of entries.

    Entries of an earlier version of the image are replaced, or removed if there are fewer frames now.

    Raises:
        ExcludedImageError: it cannot be used; the store is unchanged.
    """
    record, settings = job.record, job.settings
    before = None if job.source else _digest_if_readable(record)
    groups, masks = read_image(record, settings, job.max_voxels)
    whose = {**_identity(job), "subject": record.subject_id, "dataset": record.dataset}
    if not job.source.unchanged() if job.source else whose["source_digest"] != before:
        raise ExcludedImageError("its file changed while it was read")
    earlier = {name for name, _ in stored_entries(job)}
    if len(groups) == 1:
        prepared = prepare_channels(groups[0], settings, masks, job.max_voxels)
        del groups, masks
        _write(job, job.relative, whose, prepared)
        written = [job.relative]
    else:
        written = _write_frames(job, whose, groups, masks)
    for name in earlier - set(written):
        forget_entry(job.store, name)
    return len(written)


def read_image(
    record: Record, settings: PrepareSettings, max_voxels: int = MAX_VOXELS
) -> tuple[list[list[Volume]], dict[str, NDArray[Any]]]:
    """Read the volumes of an image, grouped to the images that are stored of it, and its masks by kind.

    Channels form one group; frames of a 4-D image do, or are a group each.

    Args:
        record: the image in the catalogue.
        settings: of the preparation.
        max_voxels: exclude larger images.

    Raises:
        ExcludedImageError: a file cannot be used, or channels are on different voxel grids.
    """
    volumes = _read_volumes(record, settings, max_voxels)
    together = record.channels or settings.frames == "channels"
    return [volumes] if together else [[volume] for volume in volumes], _read_masks(record, volumes[0])


def _read_volumes(record: Record, settings: PrepareSettings, max_voxels: int) -> list[Volume]:
    """Read the channels or frames of an image.

    Raises:
        ExcludedImageError: a file cannot be used, or channels are on different voxel grids.
    """
    if record.channels:
        return _read_stacked(record.channels, settings, max_voxels)
    if settings.frames == "exclude":
        try:
            volumes = [read_volume(record.path, settings.fill_nonfinite, max_voxels, record.series)]
        except FramesError as several:
            raise ExcludedImageError(f"{several}; frames=channels or frames=volumes of prepare includes it") from None
    else:
        volumes = read_frames(record.path, settings.fill_nonfinite, max_voxels, record.series)
    if settings.suv and record.modality.casefold() == "pet":
        factor = np.float32(suv_factor(record.path, record.units))
        volumes = [replace(volume, array=volume.array * factor) for volume in volumes]
    if not settings.labels and (reason := label_map_reason(volumes[0].array)):
        raise ExcludedImageError(f"{reason}; labels=true includes such images")
    return volumes


def _read_stacked(channels: Sequence[Record], settings: PrepareSettings, max_voxels: int) -> list[Volume]:
    volumes: list[Volume] = []
    for channel in channels:
        try:
            volumes += _read_volumes(channel, settings, max_voxels // len(channels))
        except ExcludedImageError as exclusion:
            raise ExcludedImageError(f"its channel {channel.path.name}: {exclusion}") from None
        if difference := grid_difference(volumes[-1], volumes[0]):
            raise ExcludedImageError(
                f"its channel {channel.path.name} is on another voxel grid than {channels[0].path.name}: {difference}; "
                "register and resample the images of a session to each other first"
            )
    return volumes


def _read_masks(record: Record, volume: Volume) -> dict[str, NDArray[Any]]:
    """Read the masks of an image by kind; of several channels the first mask of a kind."""
    masks: dict[str, NDArray[Any]] = {}
    for one in record.channels or (record,):
        for kind, path in (("anonymisation", one.anonymisation_mask), ("anatomy", one.anatomy_mask)):
            if path is not None and kind not in masks:
                masks[kind] = read_mask(path, volume)
    return masks


def _write_frames(
    job: Job, whose: dict[str, Any], frames: Sequence[Sequence[Volume]], masks: dict[str, NDArray[Any]]
) -> list[str]:
    """Write every frame as a separate image, or none; return their paths."""
    written: list[str] = []
    try:
        for number, volumes in enumerate(frames):
            prepared = prepare_channels(volumes, job.settings, masks, job.max_voxels)
            name = {"id": frame_name(job.record.image_id, number), "frames": len(frames), "frame": number}
            written.append(frame_name(job.relative, number))
            _write(job, written[-1], {**whose, **name}, prepared)
    except BaseException:
        for place in written:
            forget_entry(job.store, place)
        raise
    return written


def _write(job: Job, relative: str, whose: dict[str, Any], prepared: Prepared) -> None:
    properties = {**whose, "recipe_version": RECIPE_VERSION, **prepared.properties}
    try:
        blocks = chunk_and_block(job.settings.patch_size)
        write_entry(job.store, relative, prepared.array, properties, prepared.masks, blocks)
    except OSError as error:
        raise UnwritableError(unwritable(job.store, error)) from None


def _identity(job: Job) -> dict[str, Any]:
    """Return the properties that must be equal for a stored image to be that of the catalogue."""
    record = job.record
    return {
        "id": record.image_id,
        "modality": record.modality,
        "quality": job.quality,
        "recipe_hash": job.settings.fingerprint(),
        "source_digest": job.source.digest if job.source else record_digest(record),
        "source_bytes": job.source.size if job.source else record_bytes(record),
    }


def _digest_if_readable(record: Record) -> str | None:
    """Return a record's digest; None if a file cannot be read, which the reader reports."""
    try:
        return record_digest(record)
    except OSError:
        return None


def record_bytes(record: Record) -> int:
    """Return the size on disk of an image or its channels, and of masks."""
    if record.channels:
        return sum(record_bytes(channel) for channel in record.channels)
    return source_bytes(record.path, record.series) + sum(map(source_bytes, masks_of(record)))


@dataclass(frozen=True)
class ImageOutcome:
    """Outcome of a job.

    Attributes:
        entries: entries of the store that were written.
        reason: why the image could not be prepared, or None.
        kept: entries of an earlier version of the image, which are kept if it could not be prepared again.
        fatal: why nothing can be written, or None.
    """

    entries: int = 0
    reason: str | None = None
    kept: int = 0
    fatal: str | None = None


class UnwritableError(Exception):
    """The folder of results cannot be written, so that no other image can be prepared; the text is for the user."""


def catch_image_errors(prepare: Callable[[], int], stored: Callable[[], int]) -> ImageOutcome:
    """Prepare one image and return the outcome, also after an error.

    Args:
        prepare: does the work and returns the number of entries; raises `ExcludedImageError` for an image that cannot
            be used and `UnwritableError` if nothing can be written.
        stored: counts the entries of an earlier version of the image.
    """
    try:
        return ImageOutcome(entries=prepare())
    except ExcludedImageError as exclusion:
        reason = str(exclusion)
    except MemoryError:
        reason = "there was not enough memory for it"
    except UnwritableError as error:
        return ImageOutcome(fatal=str(error))
    except OSError as error:
        reason = f"it cannot be read: {os_reason(error)}"
    except Exception as error:  # a single file must not stop the run
        reason = f"unexpected {type(error).__name__}: {error}"
    return ImageOutcome(reason=reason, kept=stored())


def stored_image_stays(reason: str) -> str:
    """Return the reason of an image that could not be prepared again, with the consequence for the store."""
    return f"{reason}; the image that was prepared before is kept"


def unwritable(folder: Path, error: OSError) -> str:
    """Return why a folder of results cannot be written or read, and what to do."""
    if is_full(error):
        return f"The disk of {folder} is full. Free some space and run the same command again; finished images stay."
    place = error.filename or folder
    return f"{place} cannot be used: {error.strerror}. Finished images stay; run the same command again."
