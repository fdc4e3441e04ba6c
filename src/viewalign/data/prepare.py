"""Preparation of a catalogue into a store: in parallel, in parts, resumable, and robust to bad files."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from viewalign.data.catalogue import Record, read_catalogue
from viewalign.data.channels import stacked
from viewalign.data.columns import rows_on_disk, sweep_temporary
from viewalign.data.indexing import Index, read_excluded
from viewalign.data.inputs import quality_scores
from viewalign.data.layout import (
    ImageProgress,
    ProgressListener,
    forget_entry,
    frame_name,
    image_of,
    safe_name,
    sweep_entry,
)
from viewalign.data.settings import Limits, PrepareSettings
from viewalign.data.shards import (
    Shard,
    excluded_in_parts,
    forget_part,
    leave_part,
    missing_parts,
    remove_parts,
    work_digest,
)
from viewalign.data.shared_folders import SharedFolders
from viewalign.data.sources import Exclusion
from viewalign.data.store_header import check_folder, open_for_writing
from viewalign.data.store_report import write_report
from viewalign.data.worker import (
    ImageOutcome,
    Job,
    entries_done,
    place_of,
    stored_entries,
    stored_image_stays,
    unwritable,
    work,
)
from viewalign.data.worker_pool import WorkerLost, default_workers, run_jobs
from viewalign.errors import UserError, os_reason
from viewalign.utils.locks import lock_folder
from viewalign.utils.text import counted

_log = logging.getLogger(__name__)


@dataclass
class PrepareReport:
    """Result of `prepare_records`.

    Attributes:
        prepared: images in the store's index; of a part of a run, its processed images.
        made: images stored by this run, frames of a 4-D image that are stored separately are counted.
        skipped: images that already existed.
        kept: images of excluded files that an earlier run stored, which are kept.
        pruned: entries that were removed because their image left the catalogue.
        others: images in the index that are not in this catalogue; they are from other runs.
        excluded: files that could not be used, sorted.
        missing_parts: parts of the run that are not complete; the store is unfinished until there are none.
        index: all images of a finished store with the findings on them, None of an unfinished one.
    """

    prepared: int = 0
    made: int = 0
    skipped: int = 0
    kept: int = 0
    pruned: int = 0
    others: int = 0
    excluded: list[Exclusion] = field(default_factory=list)
    missing_parts: list[int] = field(default_factory=list)
    index: Index | None = None


def prepare_catalogue(
    catalogue: Path,
    store: Path,
    settings: PrepareSettings | None = None,
    workers: int | None = None,
    on_progress: ProgressListener | None = None,
) -> PrepareReport:
    """Prepare every image of a catalogue; files excluded by the index are reported again.

    See `prepare_records` for the arguments and errors.
    """
    collection = read_catalogue(catalogue)
    records = collection.records(catalogue.absolute().parent)
    quality = quality_scores(collection)
    return prepare_records(records, store, settings, workers, read_excluded(catalogue), on_progress, quality=quality)


def prepare_records(
    records: Sequence[Record],
    store: Path,
    settings: PrepareSettings | None = None,
    workers: int | Callable[[], int] | None = None,
    excluded: Sequence[Exclusion] = (),
    on_progress: ProgressListener | None = None,
    *,
    quality: Mapping[str, float] | None = None,
    left_out: Sequence[Record] = (),
    left_out_frames: Sequence[tuple[Record, int]] = (),
    shard: Shard | None = None,
    executor: Executor | None = None,
    limits: Limits | None = None,
    prune: Callable[[list[str]], bool] | None = None,
) -> PrepareReport:
    """Prepare images into a store; existing images of the same recipe and source are kept.

    Images whose source cannot be read any more are kept, and are in `excluded`. Index and report are written at the
    end, also of an interrupted run. Stores of the same images and settings are the same bytes, however they were made.

    Args:
        records: the images.
        store: folder, created if missing; images of earlier runs are kept.
        settings: default `PrepareSettings()`.
        workers: processes; default one per core, 0 none. Of an executor, jobs at a time, or a function that returns it.
        excluded: files that were excluded before, to be reported too; stored images of them are kept.
        on_progress: called after each image.
        quality: scores by image id, for filters.
        left_out, left_out_frames: what lists exclude: it stays on the disk, out of the store's index.
        shard: which part of the work this run does; default all of it.
        executor: any of `concurrent.futures`, such as Dask's; default processes of this machine.
        limits: time and size that one file may ask for.
        prune: called with entries whose image left `records`; returns whether to remove them (default: they stay).

    Raises:
        UserError: most files are out of reach, so that nothing was begun; the folder holds something else or a store of
            another recipe; the disk is full; another run prepares the store.
    """
    settings, shard, limits = settings or PrepareSettings(), shard or Shard(), limits or Limits()
    store, scores = store.absolute(), quality or {}
    records, unused = stacked(records, settings.channels)
    distinct, twice = _distinct(records)
    if executor is None:  # the workers of a cluster may have access to other files
        _check_sources(shard.of(distinct))
    if prune and not shard.whole:
        raise UserError("One part of several cannot remove images that left the catalogue; run it without a shard.")
    check_folder(store, settings)  # before a lock is created in it
    catalogue = _Catalogue.of(distinct, _left_out(left_out, left_out_frames, settings.channels), excluded, settings)
    with lock_folder(store, shard.name, "divide the work: each run with its own shard=i/n"):
        _open(store, settings, shard)
        run, whole = _Run(on_progress, PrepareReport(excluded=[*excluded, *unused, *twice])), False
        jobs = [Job(store, one, settings, _quality(one, scores), limits.max_voxels) for one in shard.of(distinct)]
        try:
            run.report.pruned = _prune(store, catalogue, prune)
            run.do(jobs, _count(workers, len(jobs)), limits.seconds, executor)
            whole = True
        finally:
            _finish(store, settings, shard, run.report, whole, catalogue)
    return run.report


def _open(store: Path, settings: PrepareSettings, shard: Shard) -> None:
    """Open a store for writing, without leftovers of an interrupted run."""
    if shard.whole:
        sweep_temporary(store)
    else:
        forget_part(store, shard)
    open_for_writing(store, settings)


_OTHERS = (
    "%s in %s: not in this source, such as %s. A pretraining uses them too. If they are images of this source under "
    "earlier names, as after a new subject_pattern, prepare it again with --prune, which lists and removes them."
)
_UNKNOWN = (
    "%s in %s: not in this source, such as %s. A pretraining uses them too. Some may be of files that are excluded "
    "now, which the report lists: --prune would remove what is stored of these. Check or repair the files first."
)
_READERS = 16
"""Threads that check sources: on a network share they wait most of the time."""


@dataclass(frozen=True)
class _Catalogue:
    """What all parts of a run have in common.

    Attributes:
        work: digest of its images and settings.
        here: paths in the store of its images.
        left_out: those of images and frames that lists exclude.
        excluded: those of files that the index excluded, such as damaged ones.
        unknown: whether it excluded files whose images have unknown paths.
    """

    work: str
    here: Set[str]
    left_out: Set[str]
    excluded: Set[str]
    unknown: bool

    @classmethod
    def of(
        cls, records: Sequence[Record], left_out: Set[str], excluded: Sequence[Exclusion], settings: PrepareSettings
    ) -> _Catalogue:
        here, paths = _paths(records), {each.image for each in excluded if each.image}
        if settings.channels:
            name = safe_name("-".join(settings.channels))
            paths = {f"{path.rpartition('/')[0]}/{name}" for path in paths}
        return cls(
            work_digest((record.image_id for record in records), settings),
            here,
            left_out - here,
            paths - here - left_out,
            any(not each.image for each in excluded),
        )


@dataclass
class _Run:
    """The counts of one run."""

    listener: ProgressListener | None
    report: PrepareReport
    total: int = 0
    done: int = 0
    excluded_here: int = 0

    def missing(self, jobs: Sequence[Job], shared: SharedFolders) -> Iterator[Job]:
        """Yield jobs that are not done yet, with what their folders contain, and count the others."""

        def look(job: Job) -> tuple[Job, int]:
            with contextlib.suppress(OSError):  # reported by the worker
                job = replace(job, source=shared.source(job.record))
            return job, entries_done(job)

        with ThreadPoolExecutor(_READERS) as pool:
            try:
                for job, entries in pool.map(look, jobs):
                    if entries:
                        self.report.skipped += entries
                        self.report_progress(job.record)
                    else:
                        yield _with_slices(job, shared)
            finally:
                pool.shutdown(cancel_futures=True)

    def do(
        self, jobs: Sequence[Job], workers: int | Callable[[], int], seconds: float | None, executor: Executor | None
    ) -> None:
        """Do the jobs that are not done yet."""
        self.total = len(jobs)
        count = None if callable(workers) else workers
        # Workers of a cluster may have access to other files.
        shared = SharedFolders((job.record for job in jobs) if executor is None else (), count)
        for job, result in run_jobs(work, self.missing(jobs, shared), workers, seconds, executor):
            self.take(job, result)

    def take(self, job: Job, result: ImageOutcome | WorkerLost) -> None:
        """Count one result."""
        if isinstance(result, WorkerLost):
            sweep_entry(job.store, job.relative)
            result = ImageOutcome(reason=result.reason, kept=len(stored_entries(job)))
        if result.fatal is not None:
            raise UserError(result.fatal)
        if result.reason is not None:
            self.report.kept += result.kept
            self.exclude(job.record, stored_image_stays(result.reason) if result.kept else result.reason)
        else:
            self.report.made += result.entries
            self.report_progress(job.record)

    def exclude(self, record: Record, reason: str) -> None:
        """Count an image that could not be prepared."""
        self.report.excluded.append(Exclusion(str(record.path), reason))
        self.excluded_here += 1
        self.report_progress(record, reason)

    def report_progress(self, record: Record, reason: str | None = None) -> None:
        """Call the listener."""
        self.done += 1
        if self.listener is not None:
            skipped = self.report.skipped
            self.listener(ImageProgress(self.done, self.total, skipped, self.excluded_here, str(record.path), reason))


def _with_slices(job: Job, shared: SharedFolders) -> Job:
    """Add the slices of an image in a shared folder, unless its files cannot be read, which the worker reports."""
    if job.source is None:
        return job
    try:
        record, source = shared.with_slices(job.record, job.source)
    except OSError:
        return replace(job, source=None)
    return replace(job, record=record, source=source)


def _check_sources(records: Sequence[Record]) -> None:
    """Check that most files can be reached, which fails after a network share was lost.

    Raises:
        UserError: most cannot.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        problems = [problem for problem in pool.map(_problem, records) if problem is not None]
    if 2 * len(problems) > len(records):
        raise UserError(
            f"{len(problems):,} of {counted(len(records), 'file')} of the catalogue cannot be reached, such as "
            f"{problems[0]}. Nothing was changed. Is a disk or network share missing? To add images to a store whose "
            "earlier sources were archived, prepare a catalogue with only the new ones."
        )


def _problem(record: Record) -> str | None:
    """Return the path of a file of an image that cannot be reached, with the reason."""
    for one in record.channels or (record,):
        try:
            one.path.stat()
        except OSError as error:
            return f"{one.path} ({os_reason(error)})"
    return None


def _prune(store: Path, catalogue: _Catalogue, agree: Callable[[list[str]], bool] | None) -> int:
    """Remove images that left the catalogue, if accepted, and empty folders; return the number of entries."""
    if agree is None:
        return 0
    rows, stay = rows_on_disk(store), catalogue.here | catalogue.left_out | catalogue.excluded
    entries = sorted(row.path for row, properties in rows if image_of(row.path, properties) not in stay)
    if entries and catalogue.unknown:
        _log.warning(
            "Images to be removed may be of files that are excluded now, such as damaged ones. Check the list."
        )
    if not entries or not agree(entries):
        return 0
    try:
        for relative in entries:
            forget_entry(store, relative)
            with contextlib.suppress(OSError):  # not empty
                for folder in (store / relative).parents[:3]:
                    folder.rmdir()
    except OSError as error:
        raise UserError(unwritable(store, error)) from None
    return len(entries)


def _paths(records: Iterable[Record]) -> set[str]:
    return {place_of(record) for record in records}


def _left_out(records: Iterable[Record], frames: Iterable[tuple[Record, int]], channels: Sequence[str]) -> set[str]:
    """Return the paths of images and frames that lists exclude; of a channel, that of the image of its session."""
    if channels:
        folded, name = {each.casefold() for each in channels}, "-".join(channels)
        records = [replace(each, name=name) for each in records if each.modality.casefold() in folded]
    return _paths(records) | {frame_name(place_of(record), number) for record, number in frames}


def _distinct(records: Sequence[Record]) -> tuple[list[Record], list[Exclusion]]:
    """Keep the first of several images of one id; decided over the whole catalogue, so that parts agree."""
    first: dict[tuple[str, ...], Record] = {}
    excluded = []
    for record in records:
        place = (record.dataset, record.subject, record.session, record.name)
        if place in first:
            reason = f"another image of the catalogue has the same id {record.image_id}"
            excluded.append(Exclusion(str(record.path), reason))
        else:
            first[place] = record
    return list(first.values()), excluded


def _quality(record: Record, scores: Mapping[str, float]) -> float | None:
    """Return the score of an image, or the lowest of its channels; None if it has none."""
    known = [scores[one.image_id] for one in (record.channels or (record,)) if one.image_id in scores]
    return min(known, default=None)


def _count(workers: int | Callable[[], int] | None, images: int) -> int | Callable[[], int]:
    if callable(workers):
        return workers
    return min(default_workers() if workers is None else workers, max(images, 1))


def _finish(
    store: Path,
    settings: PrepareSettings,
    shard: Shard,
    report: PrepareReport,
    whole: bool,
    catalogue: _Catalogue,
) -> None:
    """Write index and report; a part does so for all parts if it is the last."""
    everything: list[Exclusion] | None = sorted(set(report.excluded))
    report.excluded = everything or []
    try:
        if shard.whole:
            remove_parts(store)
        else:
            report.prepared = report.made + report.skipped
            if whole:
                leave_part(store, shard, catalogue.work, report.excluded)
            report.missing_parts = missing_parts(store, shard.count, catalogue.work)
            everything = None if report.missing_parts else excluded_in_parts(store, shard.count, catalogue.work)
        if everything is None:
            return
        report.index, beyond = write_report(store, settings, everything, catalogue.here, catalogue.left_out)
        others = [name for name, path in beyond if path not in catalogue.excluded]
        report.excluded, report.prepared, report.others = everything, report.index.images, len(others)
        report.kept += len(beyond) - len(others)
        if not shard.whole:
            remove_parts(store)
            sweep_temporary(store, below=False)
    except OSError as error:
        raise UserError(unwritable(store, error)) from None
    if others and whole:
        _log.warning(_UNKNOWN if catalogue.unknown else _OTHERS, counted(len(others), "image"), store, others[0])
