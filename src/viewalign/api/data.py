"""Indexing and preparation of images: `index`, `prepare` and `estimate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import UserError, report_os_errors, usual_reason
from viewalign.utils.outputs import check_file
from viewalign.utils.settings import checked

if TYPE_CHECKING:
    from viewalign.data.indexing import Index
    from viewalign.data.prepare import PrepareReport
    from viewalign.data.settings import PrepareOptions
    from viewalign.training.estimate import Estimate

Listener = Callable[[str, int, int], None]
"""Called with the current work in a few words, the number done, and the total."""


def stage(listener: Listener | None, what: str) -> Callable[[int, int], None] | None:
    """Return a listener of (done, total) for one piece of work, or None without a listener."""
    return None if listener is None else lambda done, total: listener(what, done, total)


@report_os_errors()
def index(
    sources: str | Path | Sequence[str | Path],
    out: str | Path = "catalogue.json",
    *,
    on_progress: Listener | None = None,
    **settings: Any,
) -> Index:
    """List 3D images in a catalogue; only headers are read.

    Args:
        sources: folders, files, patterns or tables, or a single one; BIDS, nnU-Net, OpenMind and FOMO60K datasets.
        out: the catalogue. These are written beside it: `.excluded.json` (files with reasons), `.audit.tsv` (suspect
            images, a list that `exclude` takes), `.index.json` (statistics) and `.html` (a page).
        on_progress: called after each header.
        **settings: those of `viewalign settings index`.

    Returns:
        The images (`entries`), and `excluded`: file and reason of each unusable file.

    Raises:
        UserError: an unknown setting, a source that does not exist, no image, or a file that cannot be written.

    Example:
        ```python
        found = viewalign.index("scans", "catalogue.json")
        print(found.images, found.subjects(), len(found.excluded))
        ```
    """
    import re

    from viewalign.data.audit import findings_path
    from viewalign.data.exclusions import ExclusionList
    from viewalign.data.indexing import index_sources
    from viewalign.data.inputs import nothing_found
    from viewalign.data.settings import IndexSettings
    from viewalign.data.sources import FindOptions
    from viewalign.data.worker_pool import MANY

    wanted = checked(IndexSettings, settings)
    edited = findings_path(Path(out)).resolve() in {Path(file).resolve() for file in wanted.exclude}
    _check_targets(Path(out), edited)
    report = None if on_progress is None else lambda done, total: on_progress("Reading headers", done, total)
    pattern = None if wanted.subject_pattern is None else re.compile(wanted.subject_pattern)
    names = [str(one) for one in ([sources] if isinstance(sources, str | Path) else sources)]
    options = FindOptions(pattern, wanted.labels, report, wanted.frames)
    excluded = ExclusionList.read(map(Path, wanted.exclude))
    found = index_sources(names, options, on_file=report, workers=wanted.workers, exclude=excluded)
    if found.images == 0:
        raise UserError(nothing_found(names, found))
    guarded = found.images >= MANY if wanted.workers is None else wanted.workers > 0
    _write_index(found, Path(out), int(guarded), keep_findings=edited)
    return found


def _check_targets(out: Path, keep_findings: bool) -> None:
    """Check that the catalogue and the files beside it are missing, or of an earlier index, before one is written.

    Raises:
        UserError: one is another file.
    """
    from viewalign.data.audit import COLUMNS, findings_path
    from viewalign.data.indexing import excluded_path, read_excluded
    from viewalign.data.summary import summary_path
    from viewalign.reports.catalogue import page_path
    from viewalign.reports.page import check_page
    from viewalign.utils.outputs import has_keys

    check_file(out, "catalogue of viewalign index", (".json",), lambda file: summary_path(file).is_file())
    check_file(excluded_path(out), "list of viewalign index", ours=lambda _: read_excluded(out) is not None)
    if not keep_findings:
        start = "\t".join(COLUMNS).encode()
        check_file(findings_path(out), "list of viewalign index", ours=lambda file: file.read_bytes().startswith(start))
    check_file(summary_path(out), "statistics of viewalign index", ours=has_keys("collection", "entries"))
    check_page(page_path(out))


def _write_index(found: Index, out: Path, workers: int, keep_findings: bool) -> None:
    from viewalign.data.audit import findings_path, write_findings
    from viewalign.data.catalogue import write_catalogue
    from viewalign.data.indexing import write_excluded
    from viewalign.data.summary import summarise, write_summary
    from viewalign.reports.catalogue import write_index_page

    summary = summarise(found)
    try:
        write_excluded(out, found.excluded)
        if not keep_findings:  # the list was read as `exclude`: new findings are just those that it must not name
            write_findings(found, findings_path(out))
        write_summary(summary, out)
        write_catalogue(found.collection, out)  # after the lists, so that a new catalogue never has those of an old one
        write_index_page(summary, out, found.series, workers)
    except OSError as error:
        raise UserError(f"The catalogue {out} cannot be written: {error.strerror}.") from None


@report_os_errors()
def prepare(
    source: str | Path,
    out: str | Path,
    *,
    on_progress: Listener | None = None,
    prune: Callable[[list[str]], bool] | None = None,
    **settings: Any,
) -> PrepareReport:
    """Orient, crop, resample and normalise images into a store; images that are already stored are kept.

    Args:
        source: a folder of images (NIfTI, NRRD, MetaImage, DICOM) or a catalogue of `index`.
        out: the store's folder.
        on_progress: called after each image.
        prune: called with the entries of the store whose image is no longer in the source; returns whether to
            remove them. Default: they are kept.
        **settings: those of `viewalign settings prepare`, such as `spacing=1.5` or `workers=8`.

    Returns:
        Counts, and `excluded`: file and reason of each unusable image.

    Raises:
        UserError: settings that do not fit, no images, none that can be used, or a folder with other contents.

    Example:
        ```python
        report = viewalign.prepare("scans", "store", spacing=1.5)
        for file in report.excluded:
            print(file.file, file.reason)
        ```
    """
    from viewalign.data.settings import PrepareOptions
    from viewalign.data.store_report import FINDINGS
    from viewalign.data.summary import summarise
    from viewalign.reports.catalogue import write_store_page

    wanted = checked(PrepareOptions, settings)
    if any((Path(out) / FINDINGS).resolve() == Path(file).resolve() for file in wanted.exclude):
        raise UserError(f"exclude={Path(out) / FINDINGS}: prepare writes this list anew. Copy it first.")
    report = _prepare(Path(source), Path(out), wanted, on_progress or (lambda *_: None), prune)
    if report.prepared == 0:
        reasons = [(each.file, each.reason) for each in report.excluded]
        raise UserError(
            f"No image could be used ({len(reasons):,} tried). {usual_reason(reasons)} All are in "
            f"{Path(out) / 'report.json'}."
        )
    if report.index is not None:
        write_store_page(summarise(report.index), Path(out))
    return report


def _prepare(
    source: Path, out: Path, wanted: PrepareOptions, say: Listener, prune: Callable[[list[str]], bool] | None
) -> PrepareReport:
    """Prepare images on this machine or on a Dask cluster."""
    from viewalign.data.exclusions import ExclusionList
    from viewalign.data.inputs import catalogue_of, stored_settings, without
    from viewalign.data.prepare import prepare_records
    from viewalign.data.shards import Shard
    from viewalign.data.worker_pool import dask_cluster

    shard = Shard.parse(wanted.shard)
    found = catalogue_of(source, wanted.frames != "exclude", lambda *counts: say("Reading headers", *counts))
    found = without(found, ExclusionList.read(map(Path, wanted.exclude)), wanted.channels, wanted.frames == "volumes")
    rest: dict[str, Any] = {
        "excluded": found.excluded,
        "on_progress": lambda step: say(step.words("Preparing"), step.done, step.total),
        "quality": found.quality,
        "left_out": found.left_out,
        "left_out_frames": found.left_out_frames,
        "shard": shard,
        "limits": wanted.limits(),
        "prune": prune,
    }
    places = found.records, out, stored_settings(wanted, found.records, say)
    if wanted.scheduler is None:
        return prepare_records(*places, workers=wanted.workers, **rest)
    with dask_cluster(wanted.scheduler, out) as cluster:
        return prepare_records(*places, workers=cluster.threads, executor=cluster.executor, **rest)


def estimate(
    source: str | Path,
    recipe: str | Path = "cva-resenc-l",
    *,
    on_progress: Listener | None = None,
    **settings: Any,
) -> Estimate:
    """Estimate disk space, memory and hours of preparation and pretraining; nothing is written.

    Args:
        source: a folder of images or a catalogue of `index`.
        recipe: the pretraining recipe.
        on_progress: called after each header.
        **settings: those of `viewalign settings estimate`: of the recipe, of `prepare`, and `gpu`.

    Returns:
        A text, and `facts`: all figures.

    Raises:
        UserError: settings that do not fit, no images, or a GPU of unknown speed.

    Example:
        ```python
        cost = viewalign.estimate("scans", "cva-resenc-xs", gpu=["a100"], prepare={"spacing": 2})
        print(cost.facts["preparation"]["disk_bytes"])
        ```
    """
    from viewalign.training.estimate import estimate as run

    return run(Path(source), str(recipe), settings, on_progress or (lambda *_: None))
