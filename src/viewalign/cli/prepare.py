"""`viewalign prepare`: preprocess a catalogue or a folder into a store."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.grammar import Result, command, settings_of
from viewalign.cli.index import show_audit
from viewalign.utils.console import EXIT_CODE, show_excluded, stages
from viewalign.utils.text import counted, size_text

if TYPE_CHECKING:
    from viewalign.data.prepare import PrepareReport

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A catalogue of `viewalign index`, nnssl's pretrain_data.json, or a folder of images.",
        show_default=False,
    ),
]


def prepare(
    context: typer.Context,
    source: Source,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="STORE", help="The store's folder; an unfinished one is completed."),
    ],
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="List images that are no longer in the source, and remove them; otherwise they stay in use."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them without confirmation.")] = False,
) -> Result:
    """Orient, crop, resample and normalise every image, and store it.

    Images are reoriented to LPS and cropped to their content.
    A second run prepares only missing images. Unusable images are
    excluded and listed with the reason in STORE/report.json; a single file does not stop the run.

    [b]Examples[/b]

    viewalign prepare catalogue.json -o store

    viewalign prepare ~/scans -o store spacing=1.5 workers=8

    viewalign prepare ct.json -o ct normalise=window window=[-1000,1000] dtype=int16

    viewalign prepare catalogue.json -o store shard=$SLURM_ARRAY_TASK_ID/16

    viewalign prepare catalogue.json -o store scheduler=tcp://head:8786

    Exit code: 0 all images are stored, 3 some are excluded, 1 no image could be stored.
    """
    import viewalign

    remove = partial(_agreed, yes) if prune else None
    try:
        with terminated_as_interrupt(), stages() as report:
            done = viewalign.prepare(source, out, on_progress=report, prune=remove, **settings_of(context))
    except KeyboardInterrupt as stop:
        typer.echo("Stopped. Finished images are kept; run the same command again to continue.", err=True)
        raise typer.Exit(143 if stop.args else 130) from None
    names = ("prepared", "made", "skipped", "kept", "pruned", "others", "excluded", "missing_parts")
    facts = {"store": out, **{name: getattr(done, name) for name in names}}
    return Result(facts, partial(_print_end, out, done), EXIT_CODE if done.excluded else 0)


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM, which schedulers send before they kill, into `KeyboardInterrupt("SIGTERM")`.

    This is possible only in the main thread; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _agreed(yes: bool, places: list[str]) -> bool:
    """List images that are no longer in the source, and return whether to remove them."""
    for place in places:
        typer.echo(f"  {place.removeprefix('volumes/')}", err=True)
    typer.echo(f"No longer in the source: {len(places)} of the images in the store.", err=True)
    return yes or typer.confirm("Remove them?", err=True)


def _print_end(out: Path, report: PrepareReport) -> None:
    from rich.console import Console

    from viewalign.data.audit import audit

    console = Console()
    show_excluded(console, [(exclusion.file, exclusion.reason) for exclusion in report.excluded])
    if report.index is not None:
        show_audit(console, [row.as_json() for row in audit(report.index)])
    for line in _end_of_part(report) if report.missing_parts else _end(out, report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _end_of_part(report: PrepareReport) -> list[str]:
    left = ", ".join(map(str, report.missing_parts[:20])) + (" …" if len(report.missing_parts) > 20 else "")
    return [
        f"This part is complete: {counted(report.prepared, 'image')}, {report.made:,} of them prepared now.",
        f"Still missing: part {left}. The last part writes index and report.",
    ]


def _end(out: Path, report: PrepareReport) -> list[str]:
    parts = max(report.prepared - report.made - report.skipped - report.kept - report.others, 0)
    counts = [
        f"{counted(report.prepared, 'image')} in the store",
        f"{report.made} prepared now",
        f"{report.skipped} already there" if report.skipped else "",
        f"{report.kept} kept whose file is missing or damaged" if report.kept else "",
        f"{report.pruned} removed" if report.pruned else "",
        f"{parts} of other parts" if parts else "",
        f"{report.others} not of this source" if report.others else "",
        f"{len(report.excluded)} excluded" if report.excluded else "",
    ]
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    lines = [
        "; ".join(filter(None, counts)) + ".",
        f"Store:  {out} ({size_text(size)})",
        f"Report: {out / 'report.json'}",
        f"Page:   {out / 'report.html'}",
    ]
    if report.prepared:
        lines.append(f"Next:   {command('pretrain', 'cva-resenc-xs', out, '-o', 'run')}")
    return lines
