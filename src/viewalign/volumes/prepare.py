"""Prepare a whole catalogue into a store: in parallel, resumable, and no single file can stop it."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import RefusedImageError, UserError
from viewalign.volumes.catalogue import Record, read_catalogue
from viewalign.volumes.columns import rows_on_disk, sweep_temporary, write_index
from viewalign.volumes.headers import source_bytes
from viewalign.volumes.indexing import read_refused
from viewalign.volumes.itk import sitk
from viewalign.volumes.layout import (
    STORE_FORMAT,
    STORE_VERSION,
    done_properties,
    entry_path,
    forget_entry,
    write_entry,
    write_json,
)
from viewalign.volumes.pool import Crashed, default_workers, run_jobs
from viewalign.volumes.preparing import prepare_volume
from viewalign.volumes.progress import Progress, ProgressListener
from viewalign.volumes.reading import read_mask, read_volume
from viewalign.volumes.recipe import RECIPE_VERSION, PrepareSettings
from viewalign.volumes.sources import Refusal
from viewalign.volumes.store import read_store_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Job:
    """One image to prepare."""

    store: Path
    record: Record
    settings: PrepareSettings

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


@dataclass
class PrepareReport:
    """What a run of `prepare_records` did.

    Attributes:
        prepared: images in the store's index.
        made: images stored by this run.
        skipped: images that were there already.
        refused: files that were set aside, sorted.
    """

    prepared: int = 0
    made: int = 0
    skipped: int = 0
    refused: list[Refusal] = field(default_factory=list)


def prepare_catalogue(
    catalogue: Path,
    store: Path,
    settings: PrepareSettings | None = None,
    workers: int | None = None,
    on_progress: ProgressListener | None = None,
) -> PrepareReport:
    """Prepare every image of a catalogue; the files refused while it was made are reported again.

    See `prepare_records` for the arguments and errors.
    """
    records = list(read_catalogue(catalogue).records(catalogue.absolute().parent))
    return prepare_records(records, store, settings, workers, read_refused(catalogue), on_progress)


def prepare_records(
    records: Sequence[Record],
    store: Path,
    settings: PrepareSettings | None = None,
    workers: int | None = None,
    refused: Iterable[Refusal] = (),
    on_progress: ProgressListener | None = None,
) -> PrepareReport:
    """Prepare images into a store; what is there already with the same recipe and source size is left alone.

    The index and the report are written at the end, also when the run is interrupted.

    Args:
        records: the images.
        store: folder, made if it is not there; images that earlier runs put there stay.
        settings: default `PrepareSettings()`.
        workers: processes; default one per core, 0 works in this process.
        refused: files that were set aside before, to be reported too.
        on_progress: called after each image.

    Raises:
        UserError: the folder holds something else or a store of another recipe; the disk is full.
    """
    settings = settings or PrepareSettings()
    _claim(store, settings)
    run = _Run(store, settings, len(records), on_progress, PrepareReport(refused=list(refused)))
    try:
        for job, result in run_jobs(_work, run.missing(records), _count(workers, len(records)), _start):
            run.take(job, result)
    finally:
        _finish(store, settings, run.report)
    return run.report


@dataclass
class _Run:
    """The tally of one run."""

    store: Path
    settings: PrepareSettings
    total: int
    listener: ProgressListener | None
    report: PrepareReport
    done: int = 0
    refused_here: int = 0

    def missing(self, records: Sequence[Record]) -> Iterator[Job]:
        """Yield the jobs that are not done yet; tick off the others."""
        seen: set[str] = set()
        for record in records:
            job = Job(self.store, record, self.settings)
            if job.relative in seen:
                self.refuse(record, f"another image of the catalogue has the same id {record.image_id}")
            elif _is_done(job):
                self.report.skipped += 1
                self.tell(record)
            else:
                yield job
            seen.add(job.relative)

    def take(self, job: Job, result: Outcome | Crashed) -> None:
        """Count one result."""
        if isinstance(result, Crashed):
            forget_entry(job.store, job.relative)
            self.refuse(job.record, "the reader crashed on this file")
        elif result.fatal is not None:
            raise UserError(result.fatal)
        elif result.reason is not None:
            self.refuse(job.record, result.reason)
        else:
            self.report.made += 1
            self.tell(job.record)

    def refuse(self, record: Record, reason: str) -> None:
        """Set an image aside."""
        self.report.refused.append(Refusal(str(record.path), reason))
        self.refused_here += 1
        self.tell(record, reason)

    def tell(self, record: Record, reason: str | None = None) -> None:
        """Tell the listener."""
        self.done += 1
        if self.listener is not None:
            skipped = self.report.skipped
            self.listener(Progress(self.done, self.total, skipped, self.refused_here, str(record.path), reason))


def _count(workers: int | None, images: int) -> int:
    return min(default_workers() if workers is None else workers, max(images, 1))


def _claim(store: Path, settings: PrepareSettings) -> None:
    """Make the folder ours, or refuse it."""
    header = read_store_header(store)
    if header is None and store.is_dir() and any(store.iterdir()):
        raise UserError(f"The folder {store} is not empty and holds no store. Give another folder to -o.")
    if header is not None and header.get("recipe_hash") != settings.fingerprint():
        made_with = _describe(header)
        raise UserError(
            f"The store {store} was made with another recipe ({made_with}; asked for now: {settings.describe()}, "
            f"version {RECIPE_VERSION}). Give another folder to -o, or the same settings."
        )
    try:
        sweep_temporary(store)
        _write_header(store, settings, None)
    except OSError as error:
        raise UserError(f"The store {store} cannot be written: {error.strerror}.") from None


def _describe(header: dict[str, Any]) -> str:
    recipe = header.get("recipe")
    if recipe is None:
        return "from arrays, unprepared"
    try:
        return f"{PrepareSettings(**recipe).describe()}, version {header.get('recipe_version')}"
    except (TypeError, ValueError):
        return f"{recipe}, version {header.get('recipe_version')}"


def _write_header(store: Path, settings: PrepareSettings, images: int | None) -> None:
    write_json(
        store / "store.json",
        {
            "format": STORE_FORMAT,
            "version": STORE_VERSION,
            "recipe": settings.model_dump(mode="json"),
            "recipe_version": RECIPE_VERSION,
            "recipe_hash": settings.fingerprint(),
            "images": images,
        },
    )


def _finish(store: Path, settings: PrepareSettings, report: PrepareReport) -> None:
    rows = list(rows_on_disk(store))
    report.prepared = len(rows)
    report.refused.sort()
    try:
        write_index(store, rows)
        _write_header(store, settings, len(rows))
        entries = [refusal.as_json() for refusal in report.refused]
        write_json(store / "report.json", {"prepared": report.prepared, "refused": entries})
    except OSError as error:
        raise UserError(_unwritable(store, error)) from None


def _unwritable(store: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return f"The disk of {store} is full. Make room and run the same command again; what is done stays."
    return f"The store {store} cannot be written: {error.strerror}. What is done stays; run the same command again."


def _source_size(record: Record) -> int:
    paths = (record.path, record.anonymisation_mask, record.anatomy_mask)
    return sum(source_bytes(path) for path in paths if path is not None)


def _is_done(job: Job) -> bool:
    properties = done_properties(job.store, job.relative)
    if properties is None:
        return False
    try:
        size = _source_size(job.record)
    except OSError:
        return False
    wanted = (job.record.image_id, job.record.modality, job.settings.fingerprint(), size)
    return tuple(properties.get(key) for key in ("id", "modality", "recipe_hash", "source_bytes")) == wanted


def _start() -> None:
    """Set up a worker: one thread each, for the cores are shared out among processes."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _work(job: Job) -> Outcome:
    """Prepare one image; runs in a worker."""
    try:
        forget_entry(job.store, job.relative)
        _prepare_one(job)
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


def _prepare_one(job: Job) -> None:
    record, settings = job.record, job.settings
    volume = read_volume(record.path, settings.fill_nonfinite)
    masks: dict[str, NDArray[Any]] = {}
    if record.anonymisation_mask is not None:
        masks["anonymisation"] = read_mask(record.anonymisation_mask, volume)
    if record.anatomy_mask is not None:
        masks["anatomy"] = read_mask(record.anatomy_mask, volume)
    prepared = prepare_volume(volume, settings, masks)
    whose = {
        "id": record.image_id,
        "subject": record.subject_id,
        "dataset": record.dataset,
        "modality": record.modality,
        "source_bytes": _source_size(record),
        "recipe_version": RECIPE_VERSION,
        "recipe_hash": settings.fingerprint(),
    }
    try:
        write_entry(job.store, job.relative, prepared.array[None], {**whose, **prepared.properties}, prepared.masks)
    except OSError as error:
        raise _StoreError(_unwritable(job.store, error)) from None
