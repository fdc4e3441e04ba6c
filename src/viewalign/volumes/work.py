"""What a worker does with one image of a catalogue: read, prepare, write. Its file can stop nothing but itself."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import RefusedImageError
from viewalign.volumes.catalogue import Record
from viewalign.volumes.headers import MAX_VOXELS, source_bytes
from viewalign.volumes.layout import chunk_and_block, done_properties, entry_path, forget_entry, write_entry
from viewalign.volumes.preparing import prepare_volume
from viewalign.volumes.reading import read_mask, read_volume
from viewalign.volumes.recipe import RECIPE_VERSION, PrepareSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FULL = {errno.ENOSPC, errno.EDQUOT}


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


@dataclass(frozen=True)
class Outcome:
    """What became of a job: stored (no reason), refused (a reason), or the store cannot be written (fatal)."""

    reason: str | None = None
    fatal: str | None = None


def is_done(job: Job) -> bool:
    """Say whether the image is wholly in the store, made of the same source by the same recipe."""
    properties = done_properties(job.store, job.relative)
    if properties is None:
        return False
    try:
        wanted = _identity(job)
    except OSError:
        return False
    return all(properties.get(key) == value for key, value in wanted.items())


def work(job: Job) -> Outcome:
    """Prepare one image; whatever goes wrong with it is told in the outcome."""
    try:
        forget_entry(job.store, job.relative)
        prepare_one(job)
    except RefusedImageError as refusal:
        return Outcome(reason=str(refusal))
    except MemoryError:
        return Outcome(reason="there was not enough memory for it")
    except _StoreError as error:
        return Outcome(fatal=str(error))
    except Exception as error:  # one file must never stop the run
        return Outcome(reason=f"unexpected {type(error).__name__}: {error}")
    return Outcome()


class _StoreError(Exception):
    """The store cannot be written, so that going on is useless."""


def prepare_one(job: Job) -> None:
    """Read an image and its masks, prepare them and write them into the store.

    Raises:
        RefusedImageError: it cannot be used.
    """
    record, settings = job.record, job.settings
    volume = read_volume(record.path, settings.fill_nonfinite, job.max_voxels)
    masks: dict[str, NDArray[Any]] = {}
    if record.anonymisation_mask is not None:
        masks["anonymisation"] = read_mask(record.anonymisation_mask, volume)
    if record.anatomy_mask is not None:
        masks["anatomy"] = read_mask(record.anatomy_mask, volume)
    prepared = prepare_volume(volume, settings, masks, job.max_voxels)
    del volume, masks
    whose = {**_identity(job), "subject": record.subject_id, "dataset": record.dataset}
    sizes = chunk_and_block(settings.view)
    try:
        properties = {**whose, "recipe_version": RECIPE_VERSION, **prepared.properties}
        write_entry(job.store, job.relative, prepared.array[None], properties, prepared.masks, sizes)
    except OSError as error:
        raise _StoreError(unwritable(job.store, error)) from None


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


def unwritable(store: Path, error: OSError) -> str:
    """Say why a store cannot be written, and what to do."""
    if error.errno in _FULL:
        return f"The disk of {store} is full. Make room and run the same command again; what is done stays."
    return f"The store {store} cannot be written: {error.strerror}. What is done stays; run the same command again."
