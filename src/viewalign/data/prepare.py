"""Prepare a whole catalogue into a store: in parallel, in parts, resumable, and no single file can stop it."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from viewalign.data.catalogue import Record, read_catalogue
from viewalign.data.columns import Row, rows_on_disk, sweep_temporary, write_index
from viewalign.data.indexing import read_refused
from viewalign.data.inputs import quality_scores
from viewalign.data.layout import Progress, ProgressListener, read_json, write_json
from viewalign.data.settings import Limits, PrepareSettings
from viewalign.data.sources import Exclusion
from viewalign.data.store_header import open_for_writing, write_header
from viewalign.data.worker import ImageOutcome, Job, entries_done, forget, unwritable, work
from viewalign.data.worker_pool import WorkerLost, default_workers, run_jobs
from viewalign.errors import UserError
from viewalign.utils.locks import lock_folder


@dataclass
class PrepareReport:
    """What a run of `prepare_records` did.

    Attributes:
        prepared: images in the store's index; of a part of a run, the images that it has seen to.
        made: images stored by this run, each frame of a 4-D image that is stored by itself counted.
        skipped: images that were there already.
        refused: files that were set aside, sorted.
        missing_parts: parts of the run that are still to come; the store is unfinished until there are none.
    """

    prepared: int = 0
    made: int = 0
    skipped: int = 0
    excluded: list[Exclusion] = field(default_factory=list)
    missing_parts: list[int] = field(default_factory=list)


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
    collection = read_catalogue(catalogue)
    records = list(collection.records(catalogue.absolute().parent))
    quality = quality_scores(collection)
    return prepare_records(records, store, settings, workers, read_refused(catalogue), on_progress, quality=quality)


def prepare_records(
    records: Sequence[Record],
    store: Path,
    settings: PrepareSettings | None = None,
    workers: int | Callable[[], int] | None = None,
    excluded: Iterable[Exclusion] = (),
    on_progress: ProgressListener | None = None,
    *,
    quality: Mapping[str, float] | None = None,
    shard: Shard | None = None,
    executor: Executor | None = None,
    limits: Limits | None = None,
) -> PrepareReport:
    """Prepare images into a store; what is there already with the same recipe and source size is left alone.

    The index and the report are written at the end, also when the run is interrupted. Stores of the same images and
    settings are the same bytes, whatever number of workers, parts, interruptions and whichever executor made them.

    Args:
        records: the images.
        store: folder, made if it is not there; images that earlier runs put there stay.
        settings: default `PrepareSettings()`.
        workers: processes; default one per core, 0 works in this process without guard. Of an executor, a function
            that tells how many jobs it runs at a time may be given.
        refused: files that were set aside before, to be reported too.
        on_progress: called after each image.
        quality: scores by image id, for filters.
        shard: which part of the work this run does; default all of it.
        executor: any of `concurrent.futures`, such as Dask's; default processes of this machine.
        limits: time and size that one file may ask for.

    Raises:
        UserError: the folder holds something else or a store of another recipe; the disk is full; another run is at it.
    """
    settings, shard, limits = settings or PrepareSettings(), shard or Shard(), limits or Limits()
    store = store.absolute()
    open_for_writing(store, settings)
    part = "" if shard.whole else f"{shard.number}-of-{shard.count}"
    with lock_folder(store, part, "divide the work: each run with its own shard=i/n"):
        if shard.whole:
            sweep_temporary(store)
        else:
            forget_part(store, shard)
        distinct, twice = _distinct(records)
        run = _Run(on_progress, PrepareReport(excluded=[*excluded, *twice]))
        jobs = [
            Job(store, record, settings, (quality or {}).get(record.image_id), limits.max_voxels)
            for record in shard.of(distinct)
        ]
        run.total = len(jobs)
        count = _count(workers, len(jobs))
        whole = False
        try:
            for job, result in run_jobs(work, run.missing(jobs), count, limits.seconds, executor):
                run.take(job, result)
            whole = True
        finally:
            _finish(store, settings, shard, run.report, whole)
    return run.report


@dataclass
class _Run:
    """The tally of one run."""

    listener: ProgressListener | None
    report: PrepareReport
    total: int = 0
    done: int = 0
    refused_here: int = 0

    def missing(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Yield the jobs that are not done yet; tick off the others."""
        for job in jobs:
            entries = entries_done(job)
            if entries:
                self.report.skipped += entries
                self.tell(job.record)
            else:
                yield job

    def take(self, job: Job, result: ImageOutcome | WorkerLost) -> None:
        """Count one result."""
        if isinstance(result, WorkerLost):
            forget(job)
            self.refuse(job.record, result.reason)
        elif result.fatal is not None:
            raise UserError(result.fatal)
        elif result.reason is not None:
            self.refuse(job.record, result.reason)
        else:
            self.report.made += result.entries
            self.tell(job.record)

    def refuse(self, record: Record, reason: str) -> None:
        """Set an image aside."""
        self.report.excluded.append(Exclusion(str(record.path), reason))
        self.refused_here += 1
        self.tell(record, reason)

    def tell(self, record: Record, reason: str | None = None) -> None:
        """Tell the listener."""
        self.done += 1
        if self.listener is not None:
            skipped = self.report.skipped
            self.listener(Progress(self.done, self.total, skipped, self.refused_here, str(record.path), reason))


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


def _count(workers: int | Callable[[], int] | None, images: int) -> int | Callable[[], int]:
    if callable(workers):
        return workers
    return min(default_workers() if workers is None else workers, max(images, 1))


def _finish(store: Path, settings: PrepareSettings, shard: Shard, report: PrepareReport, whole: bool) -> None:
    """Write index and report; a part does so for all parts if it is the last."""
    report.excluded = sorted(set(report.excluded))
    try:
        if shard.whole:
            remove_parts(store)
            report.prepared = _write_end(store, settings, report.excluded)
            return
        report.prepared = report.made + report.skipped
        if whole:
            leave_part(store, shard, report.excluded)
        report.missing_parts = missing_parts(store, shard.count)
        everything = None if report.missing_parts else refused_in_parts(store, shard.count)
        if everything is not None:
            report.prepared, report.excluded = _write_end(store, settings, everything), everything
            remove_parts(store)
            sweep_temporary(store, below=False)
    except OSError as error:
        raise UserError(unwritable(store, error)) from None


def _write_end(store: Path, settings: PrepareSettings, excluded: Sequence[Exclusion]) -> int:
    """Write what a finished store has beside its volumes; return how many there are."""
    found = list(rows_on_disk(store))
    write_index(store, [row for row, _ in found])
    write_header(store, settings, len(found))
    told: dict[str, Any] = {"prepared": len(found), "excluded": [exclusion.as_json() for exclusion in excluded]}
    if settings.dtype != "float32":
        told["storage"] = _storage(settings, found)
    write_json(store / "report.json", told)
    return len(found)


def _storage(settings: PrepareSettings, found: Sequence[tuple[Row, dict[str, Any]]]) -> dict[str, Any]:
    """Say what the number type costs, over all images: measured when each was written, in the units of its values."""
    errors = [(properties["storage_error"], row.voxels) for row, properties in found if "storage_error" in properties]
    voxels = sum(size for _, size in errors)
    rms = math.sqrt(math.fsum(error["rms"] ** 2 * size for error, size in errors) / voxels) if voxels else 0.0
    largest = max((error["largest"] for error, _ in errors), default=0.0)
    return {"dtype": settings.dtype, "largest_error": float(f"{largest:.4g}"), "rms_error": float(f"{rms:.4g}")}


Item = TypeVar("Item")
_FOLDER = "parts"


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count`."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`.

        Raises:
            UserError: it is not of that form, or i is not within 1 to n.
        """
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
            raise UserError(f"shard={text}: write i/n with 1 ≤ i ≤ n, such as 3/16 for the third of sixteen parts.")
        return cls(int(match.group(1)), int(match.group(2)))

    @property
    def whole(self) -> bool:
        """Whether it is all there is."""
        return self.count == 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this part's items."""
        return items[self.number - 1 :: self.count]


def leave_part(store: Path, shard: Shard, excluded: Sequence[Exclusion]) -> None:
    """Say that a part is done, and what it refused."""
    write_json(_path(store, shard), [exclusion.as_json() for exclusion in sorted(set(excluded))])


def missing_parts(store: Path, count: int) -> list[int]:
    """Return the parts that are not done yet."""
    return [n for n in range(1, count + 1) if not _path(store, Shard(n, count)).is_file()]


def refused_in_parts(store: Path, count: int) -> list[Exclusion] | None:
    """Return what all parts refused together, sorted; None where another part has tidied up in the meantime."""
    found: set[Exclusion] = set()
    try:
        for n in range(1, count + 1):
            found |= {Exclusion(entry["file"], entry["reason"]) for entry in read_json(_path(store, Shard(n, count)))}
    except OSError:
        return None
    return sorted(found)


def remove_parts(store: Path) -> None:
    """Remove what parts have left: of this run, and of an earlier one of another count."""
    shutil.rmtree(store / _FOLDER, ignore_errors=True)


def forget_part(store: Path, shard: Shard) -> None:
    """Take back that a part is done; it begins anew."""
    _path(store, shard).unlink(missing_ok=True)


def _path(store: Path, shard: Shard) -> Path:
    return store / _FOLDER / f"{shard.number}-of-{shard.count}.json"
