"""What a worker does with one image of a catalogue: read, prepare, write. Its file can stop nothing but itself."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.data.catalogue import Record
from viewalign.data.content import label_map_reason
from viewalign.data.layout import chunk_and_block, done_properties, entry_path, forget_entry, write_entry
from viewalign.data.preprocessing import Prepared, prepare_channels, prepare_volume
from viewalign.data.readers.files import read_frames, read_mask, read_volume
from viewalign.data.readers.headers import MAX_VOXELS, source_bytes
from viewalign.data.settings import RECIPE_VERSION, PrepareSettings
from viewalign.errors import ExcludedImageError, is_full

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """One image to prepare.

    Attributes:
        store: the store's folder.
        record: the image, and whose it is.
        settings: how it is prepared.
        quality: its quality score, where the catalogue knows one.
        max_voxels: refuse what claims more.
    """

    store: Path
    record: Record
    settings: PrepareSettings
    quality: float | None = None
    max_voxels: int = MAX_VOXELS

    @property
    def relative(self) -> str:
        """The image's place in the store."""
        record = self.record
        return entry_path(record.dataset, record.subject, record.session, record.name)


def entries_done(job: Job) -> int:
    """Return how many entries of the store hold the image, made of the same source by the same recipe; 0 if not all.

    An image is one entry, or one a frame.
    """
    try:
        wanted = _identity(job)
    except OSError:
        return 0
    if _is_there(job, job.relative, wanted):
        return 1
    if job.settings.frames != "volumes":
        return 0
    first = done_properties(job.store, _frame(job.relative, 0)) or {}
    count = int(first.get("frames", 0))
    named = [{**wanted, "id": _frame(str(wanted["id"]), number)} for number in range(count)]
    whole = all(_is_there(job, _frame(job.relative, number), each) for number, each in enumerate(named))
    return count if whole else 0


def _is_there(job: Job, relative: str, wanted: dict[str, Any]) -> bool:
    properties = done_properties(job.store, relative)
    return properties is not None and all(properties.get(key) == value for key, value in wanted.items())


def _frame(name: str, number: int) -> str:
    return f"{name}-frame{number:04d}"


def forget(job: Job) -> None:
    """Remove all that the store holds of an image."""
    forget_entry(job.store, job.relative)
    place = job.store / job.relative
    for mark in place.parent.glob(f"{glob.escape(place.name)}-frame[0-9][0-9][0-9][0-9].b2nd"):
        forget_entry(job.store, f"{job.relative}{mark.name[len(place.name) :].removesuffix('.b2nd')}")


def work(job: Job) -> ImageOutcome:
    """Prepare one image; whatever goes wrong with it is told in the outcome."""
    return catch_image_errors(lambda: prepare_one(job), lambda: forget(job))


def prepare_one(job: Job) -> int:
    """Read an image and its masks, prepare them and write them into the store; return the number of entries.

    Raises:
        RefusedImageError: it cannot be used.
    """
    record, settings = job.record, job.settings
    if settings.frames == "exclude":
        volumes = [read_volume(record.path, settings.fill_nonfinite, job.max_voxels)]
    else:
        volumes = read_frames(record.path, settings.fill_nonfinite, job.max_voxels)
    if not settings.labels and (reason := label_map_reason(volumes[0].array)):
        raise ExcludedImageError(f"{reason}; labels=true includes such images")
    masks: dict[str, NDArray[Any]] = {}
    if record.anonymisation_mask is not None:
        masks["anonymisation"] = read_mask(record.anonymisation_mask, volumes[0])
    if record.anatomy_mask is not None:
        masks["anatomy"] = read_mask(record.anatomy_mask, volumes[0])
    whose = {**_identity(job), "subject": record.subject_id, "dataset": record.dataset}
    if len(volumes) == 1 or settings.frames == "channels":
        prepared = prepare_channels(volumes, settings, masks, job.max_voxels)
        del volumes, masks
        _write(job, job.relative, whose, prepared)
        return 1
    for number, volume in enumerate(volumes):
        prepared = prepare_volume(volume, settings, masks, job.max_voxels)
        prepared.array = prepared.array[None]
        name = {"id": _frame(record.image_id, number), "frames": len(volumes), "frame": number}
        _write(job, _frame(job.relative, number), {**whose, **name}, prepared)
    return len(volumes)


def _write(job: Job, relative: str, whose: dict[str, Any], prepared: Prepared) -> None:
    properties = {**whose, "recipe_version": RECIPE_VERSION, **prepared.properties}
    try:
        blocks = chunk_and_block(job.settings.patch_size)
        write_entry(job.store, relative, prepared.array, properties, prepared.masks, blocks)
    except OSError as error:
        raise UnwritableError(unwritable(job.store, error)) from None


def _identity(job: Job) -> dict[str, Any]:
    """Return what must be equal for an image in the store to be the one that is asked for."""
    record = job.record
    return {
        "id": record.image_id,
        "modality": record.modality,
        "quality": job.quality,
        "recipe_hash": job.settings.fingerprint(),
        "source_bytes": record_bytes(record),
    }


def record_bytes(record: Record) -> int:
    """Return the size on disk of an image and its masks."""
    paths = (record.path, record.anonymisation_mask, record.anatomy_mask)
    return sum(source_bytes(path) for path in paths if path is not None)


@dataclass(frozen=True)
class ImageOutcome:
    """What became of a job: stored as so many entries, refused (a reason), or nothing can be written (fatal)."""

    entries: int = 0
    reason: str | None = None
    fatal: str | None = None


class UnwritableError(Exception):
    """The folder of results cannot be written, so that going on is useless; the text is for the user."""


def catch_image_errors(prepare: Callable[[], int], forget: Callable[[], None]) -> ImageOutcome:
    """Prepare one image and tell what became of it, whatever goes wrong.

    Args:
        prepare: does the work and returns the number of entries; raises `RefusedImageError` for an image that cannot
            be used and `UnwritableError` where nothing can be written.
        forget: removes what there is of the image, before, and after a refusal.
    """
    try:
        forget()
        return ImageOutcome(entries=prepare())
    except ExcludedImageError as exclusion:
        forget()
        return ImageOutcome(reason=str(exclusion))
    except MemoryError:
        return ImageOutcome(reason="there was not enough memory for it")
    except UnwritableError as error:
        return ImageOutcome(fatal=str(error))
    except Exception as error:  # one file must never stop the run
        return ImageOutcome(reason=f"unexpected {type(error).__name__}: {error}")


def unwritable(folder: Path, error: OSError) -> str:
    """Say why a folder cannot be written, and what to do."""
    if is_full(error):
        return f"The disk of {folder} is full. Make room and run the same command again; what is done stays."
    return f"The folder {folder} cannot be written: {error.strerror}. What is done stays; run the same command again."
