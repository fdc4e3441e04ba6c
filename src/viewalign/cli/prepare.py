"""`viewalign prepare`: from a catalogue to a store of prepared volumes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.preparation import catalogue_of, choices_of, settings_of
from viewalign.cli.preparation_options import (
    CataloguePath,
    ExecutorName,
    FillNonfinite,
    FramesName,
    InterpolationName,
    MaxVoxels,
    Normalise,
    NumberTypeName,
    Percentiles,
    Scheduler,
    ShardText,
    Spacing,
    TimeLimit,
    View,
    Window,
    Workers,
)
from viewalign.errors import UserError

if TYPE_CHECKING:
    from viewalign.volumes.given import Catalogue
    from viewalign.volumes.limits import Limits
    from viewalign.volumes.prepare import PrepareReport
    from viewalign.volumes.progress import Progress
    from viewalign.volumes.recipe import PrepareSettings
    from viewalign.volumes.shards import Shard


def prepare(
    catalogue: CataloguePath,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="STORE", help="The folder to write; an unfinished one is completed.")
    ],
    spacing: Spacing = "1,1,1",
    interpolation: InterpolationName = "linear",
    normalise: Normalise = "zscore",
    percentiles: Percentiles = "0.5,99.5",
    window: Window = None,
    dtype: NumberTypeName = "float32",
    view: View = None,
    frames: FramesName = "refuse",
    fill_nonfinite: FillNonfinite = False,
    workers: Workers = None,
    shard: ShardText = "1/1",
    executor: ExecutorName = "local",
    scheduler: Scheduler = None,
    time_limit: TimeLimit = 900.0,
    max_voxels: MaxVoxels = None,
) -> None:
    """Orient, crop, resample and normalise every image, and store it.

    Images are turned to one orientation (LPS) and cropped to their content.
    A second run does only what is missing. Images that cannot be used are set
    aside in STORE/report.json with the reason; no single file stops the run.

    [b]Examples[/b]

    viewalign prepare catalogue.json -o store

    viewalign prepare ~/scans -o store --spacing 1.5 --workers 8

    viewalign prepare ct.json -o ct --normalise window --window=-1000,1000 --dtype int16

    viewalign prepare catalogue.json -o store --shard $SLURM_ARRAY_TASK_ID/16

    viewalign prepare catalogue.json -o store --executor dask --scheduler tcp://head:8786

    Exit code: 0 all went in, 3 some were set aside, 1 nothing could be done.
    """
    from viewalign.volumes.limits import Limits, voxels_that_fit
    from viewalign.volumes.shards import Shard

    part = Shard.parse(shard)
    limits = Limits(time_limit, max_voxels or voxels_that_fit())
    chosen = choices_of(interpolation, normalise, percentiles, window, dtype, view, fill_nonfinite, frames)
    if executor not in {"local", "dask"} or (executor == "dask") != (scheduler is not None):
        raise UserError("--executor takes local, or dask together with --scheduler ADDRESS.")
    found = catalogue_of(catalogue, frames != "refuse")
    settings = settings_of(spacing, chosen, found.records)
    try:
        report = _run(found, out, settings, workers, part, scheduler, limits)
    except KeyboardInterrupt as stop:
        typer.echo("Stopped. What is done stays; run the same command again to go on.", err=True)
        raise typer.Exit(143 if stop.args else 130) from None
    _print_end(out, report, part)
    if report.prepared == 0:
        raise UserError(
            f"None of the {len(report.refused)} images could be used. The reasons are in {out / 'report.json'}."
        )
    raise typer.Exit(3 if report.refused else 0)


def _run(
    found: Catalogue,
    out: Path,
    settings: PrepareSettings,
    workers: int | None,
    part: Shard,
    scheduler: str | None,
    limits: Limits,
) -> PrepareReport:
    from viewalign.cli.progress import progress_bar
    from viewalign.cli.stopping import terminated_as_interrupt
    from viewalign.volumes.cluster import dask_cluster
    from viewalign.volumes.prepare import prepare_records

    latest: list[Progress] = []
    with (
        terminated_as_interrupt(),
        progress_bar("Preparing", lambda: _note(latest[-1]) if latest else "") as report,
    ):

        def listen(progress: Progress) -> None:
            latest[:] = [progress]
            report(progress.done, progress.total)

        go = partial(
            prepare_records,
            found.records,
            out,
            settings,
            refused=found.refused,
            on_progress=listen,
            quality=found.quality,
            shard=part,
            limits=limits,
        )
        if scheduler is None:
            return go(workers=workers)
        with dask_cluster(scheduler, out) as cluster:
            typer.echo(f"Dask: {cluster.workers} workers, {cluster.threads()} jobs at a time.", err=True)
            return go(workers=cluster.threads, executor=cluster.executor)


def _note(progress: Progress) -> str:
    parts = [(progress.skipped, "already there"), (progress.refused, "set aside")]
    return ", ".join(f"{count} {what}" for count, what in parts if count)


def _print_end(out: Path, report: PrepareReport, part: Shard) -> None:
    from rich.console import Console

    from viewalign.cli.index import show_refused

    console = Console()
    show_refused(console, [(refusal.file, refusal.reason) for refusal in report.refused])
    for line in _end_of_part(report, part) if report.missing_parts else _end(out, report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _end_of_part(report: PrepareReport, part: Shard) -> list[str]:
    left = ", ".join(map(str, report.missing_parts[:20])) + (" …" if len(report.missing_parts) > 20 else "")
    return [
        f"Part {part.number} of {part.count} is done: {report.prepared} images, {report.made} of them prepared now.",
        f"Still to come: part {left}. The last one to end writes index and report.",
    ]


def _end(out: Path, report: PrepareReport) -> list[str]:
    earlier = max(report.prepared - report.made - report.skipped, 0)
    counts = [
        f"{report.prepared} images in the store",
        f"{report.made} prepared now",
        f"{report.skipped} already there" if report.skipped else "",
        f"{earlier} of other runs" if earlier else "",
        f"{len(report.refused)} set aside" if report.refused else "",
    ]
    lines = [
        "; ".join(filter(None, counts)) + ".",
        f"Store:  {out} ({_megabytes(out)})",
        f"Report: {out / 'report.json'}",
    ]
    if report.prepared:
        lines.append(f"Next:   viewalign pretrain cva-resenc-xs data={out} out=run")
    return lines


def _megabytes(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return f"{size / 1000:.1f} GB" if size >= 1000 else f"{size:.1f} MB"
