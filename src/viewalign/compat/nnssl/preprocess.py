"""Prepare the images of a dataset in nnssl's layout, resumable and in parts.

The properties that nnssl reads are pickled dictionaries of numbers. Pickles are only written, never read.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viewalign.compat.nnssl.folders import MASK_FILES, image_place
from viewalign.compat.nnssl.lists import part_file, write_part, write_prepared
from viewalign.compat.nnssl.plans import CRASHED, Configuration, Plans
from viewalign.compat.nnssl.preprocessing import PreparedImage, prepare_image
from viewalign.data.catalogue import Collection, Record
from viewalign.data.columns import sweep_temporary
from viewalign.data.fingerprint import record_digest
from viewalign.data.layout import (
    ImageProgress,
    ProgressListener,
    compress,
    done_properties,
    replace_entry,
    write_json,
)
from viewalign.data.readers.files import read_mask, read_volume
from viewalign.data.readers.headers import MAX_VOXELS
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import Limits
from viewalign.data.sources import Exclusion
from viewalign.data.worker import ImageOutcome, UnwritableError, catch_image_errors, stored_image_stays, unwritable
from viewalign.data.worker_pool import run_jobs
from viewalign.errors import UserError

_ARRAYS = (".b2nd", *MASK_FILES.values())


def write_image(root: Path, place: str, image: PreparedImage, whose: dict[str, Any]) -> None:
    """Write voxels, masks and properties, and last the JSON file that marks the image as complete.

    Masks are float32, as those of nnssl. An earlier version of the image is replaced when the new one is complete.

    Args:
        root: `<plans>_<configuration>`.
        place: from `folders.image_place`.
        image: the prepared image.
        whose: ids and other facts for the JSON file.
    """
    contents = {".b2nd": compress(image.array[None]), ".pkl": pickle.dumps(image.pickled, protocol=4)}
    for kind, mask in image.masks.items():
        contents[MASK_FILES[kind]] = compress(mask[None].astype(np.float32))
    replace_entry(root, place, contents, {**whose, **image.facts}, (".pkl", *_ARRAYS))


if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """An image to prepare."""

    root: Path
    place: str
    record: Record
    how: Configuration
    forward: tuple[int, int, int]
    fingerprint: str
    max_voxels: int = MAX_VOXELS


@dataclass
class Report:
    """Result of `preprocess`.

    Attributes:
        prepared: number of complete images of the dataset.
        made: number of these that were prepared by this run.
        skipped: number of images of this part that were already complete.
        excluded: excluded files, sorted.
        complete: whether all parts are complete and the lists are written.
    """

    prepared: int = 0
    made: int = 0
    skipped: int = 0
    excluded: list[Exclusion] = field(default_factory=list)
    complete: bool = True


def preprocess(
    catalogue: Collection,
    raw: Path,
    folder: Path,
    plans: Plans,
    configuration: str,
    processes: int,
    part: int = 0,
    parts: int = 1,
    on_progress: ProgressListener | None = None,
    limits: Limits | None = None,
) -> Report:
    """Prepare every image of a dataset for one configuration, skipping complete ones.

    Args:
        catalogue: of the raw dataset.
        raw: its folder, for relative paths.
        folder: `$nnssl_preprocessed/DatasetXXX_Name`.
        plans: of the dataset.
        configuration: the one to prepare.
        processes: number of processes; 0 for this process.
        part: number of this part.
        parts: number of parts, which may run on different machines.
        on_progress: called after each image.
        limits: time and size per file; no time limit with 0 processes.

    Raises:
        UserError: unsupported plans, a full disk, or a folder that cannot be written.
    """
    if any(plans.configurations[configuration].use_mask_for_norm):
        raise UserError(
            f"{folder / plans.plans_name}.json: configurations.{configuration}.use_mask_for_norm is true, which is not "
            "supported (nnssl's planner writes false). Set it to [false], or preprocess this dataset with nnssl."
        )
    root = folder / plans.images_folder(configuration)
    limits = limits or Limits()
    run = _Run(root, plans, configuration, on_progress, limits.max_voxels)
    records = catalogue.records(raw)
    places = run.places(records)
    try:
        root.mkdir(parents=True, exist_ok=True)
        part_file(folder, configuration, part, parts).unlink(missing_ok=True)
        if parts == 1:
            sweep_temporary(root)  # other parts may be writing theirs
        mine = list(places.items())[part::parts]
        run.total = len(mine) + len(run.report.excluded)
        for job, result in run_jobs(_work, run.missing(mine), min(processes, max(len(mine), 1)), limits.seconds):
            run.take(job, result)
        _write_lists(folder, catalogue, run, places, part, parts)
    except OSError as error:
        raise UserError(unwritable(folder, error)) from None
    return run.report


@dataclass
class _Run:
    """Counts results and reports progress."""

    root: Path
    plans: Plans
    configuration: str
    listener: ProgressListener | None
    max_voxels: int = MAX_VOXELS
    report: Report = field(default_factory=Report)
    total: int = 0
    done: int = 0

    def places(self, records: Sequence[Record]) -> dict[str, Record]:
        """Return images by path, in the order of the catalogue, excluding those without a unique path."""
        found: dict[str, Record] = {}
        seen: set[str] = set()
        for record in records:
            names = (record.collection, record.dataset, record.subject, record.session, record.name)
            try:
                if record.image_id in seen:
                    raise ValueError(f"another image of the catalogue has the same id {record.image_id}")
                found[image_place(*names, taken=found)] = record
                seen.add(record.image_id)
            except ValueError as reason:
                self.exclude(record, str(reason))
        for place in [p for p in found for end in MASK_FILES.values() if _masked(p, end) in found]:
            self.exclude(found.pop(place), "its name is that of another image's mask in nnssl's layout")
        return found

    def missing(self, places: Sequence[tuple[str, Record]]) -> Iterator[Job]:
        """Yield the jobs that are not complete, and count the others."""
        how, fingerprint = self.plans.configurations[self.configuration], self.plans.fingerprint(self.configuration)
        for place, record in places:
            job = Job(self.root, place, record, how, self.plans.transpose_forward, fingerprint, self.max_voxels)
            if is_done(job):
                self.report.skipped += 1
                self.report_progress(record)
            else:
                yield job

    def take(self, job: Job, result: object) -> None:
        """Count a result; if it is not an `ImageOutcome`, the process was lost."""
        if not isinstance(result, ImageOutcome):
            self.exclude(job.record, getattr(result, "reason", CRASHED))
        elif result.fatal is not None:
            raise UserError(result.fatal)
        elif result.reason is not None:
            self.exclude(job.record, stored_image_stays(result.reason) if result.kept else result.reason)
        else:
            self.report.made += 1
            self.report_progress(job.record)

    def exclude(self, record: Record, reason: str) -> None:
        """Exclude an image."""
        self.report.excluded.append(Exclusion(str(record.path), reason))
        self.report_progress(record, reason)

    def report_progress(self, record: Record, reason: str | None = None) -> None:
        """Report progress."""
        self.done += 1
        if self.listener is not None:
            report = self.report
            self.listener(
                ImageProgress(self.done, self.total, report.skipped, len(report.excluded), str(record.path), reason)
            )


def _masked(place: str, ending: str) -> str:
    return place.removesuffix(ending.removesuffix(".b2nd")) if place.endswith(ending.removesuffix(".b2nd")) else ""


def is_done(job: Job) -> bool:
    """Return whether an image is complete, from the same file and by the same plans."""
    facts = done_properties(job.root, job.place)
    if facts is None:
        return False
    try:
        digest = record_digest(job.record)
    except OSError:
        return False
    wanted = (job.record.image_id, job.record.modality, job.fingerprint, digest)
    return tuple(facts.get(key) for key in ("id", "modality", "recipe_hash", "source_digest")) == wanted


def _work(job: Job) -> ImageOutcome:
    """Prepare one image; runs in a worker."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # processes share the cores
    return catch_image_errors(lambda: _prepare_one(job), lambda: int(done_properties(job.root, job.place) is not None))


def _prepare_one(job: Job) -> int:
    record = job.record
    volume = read_volume(record.path, max_voxels=job.max_voxels, source=record.series)
    masks: dict[str, NDArray[Any]] = {}
    if record.anonymisation_mask is not None:
        masks["anonymisation"] = read_mask(record.anonymisation_mask, volume)
    if record.anatomy_mask is not None:
        masks["anatomy"] = read_mask(record.anatomy_mask, volume)
    try:
        image = prepare_image(volume, masks, job.how, job.forward, job.max_voxels)
    except UserError as problem:  # unsupported plans, for every image
        raise UnwritableError(str(problem)) from None
    whose = {
        "id": record.image_id,
        "subject": record.subject_id,
        "dataset": record.dataset,
        "modality": record.modality,
        "source_digest": record_digest(record),
        "recipe_hash": job.fingerprint,
    }
    try:
        write_image(job.root, job.place, image, whose)
    except OSError as error:
        raise UnwritableError(unwritable(job.root, error)) from None
    return 1


def _write_lists(
    folder: Path, catalogue: Collection, run: _Run, places: dict[str, Record], part: int, parts: int
) -> None:
    """Write the list of this part, and those of the dataset when all parts are complete."""
    report, name = run.report, run.configuration
    report.excluded.sort()
    excluded = [exclusion.as_json() for exclusion in report.excluded]
    done = [place for place in places if done_properties(run.root, place) is not None]
    report.prepared = len(done)
    suffix = f"__{part}_of_{parts}" if parts > 1 else ""
    write_json(folder / f"report__{name}{suffix}.json", {"prepared": report.prepared, "excluded": excluded})
    report.complete = parts == 1 or write_part(folder, name, part, parts, done)
    if report.complete:
        by_id = {places[place].image_id: place for place in done}
        write_prepared(folder, run.root.name, name, catalogue, by_id)
