"""`viewalign prepare`: from a catalogue to a store of prepared volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.errors import UserError

if TYPE_CHECKING:
    from viewalign.volumes.prepare import PrepareReport
    from viewalign.volumes.progress import Progress
    from viewalign.volumes.recipe import PrepareSettings


def prepare(
    catalogue: Annotated[
        Path,
        typer.Argument(
            metavar="CATALOGUE",
            help="A catalogue of `viewalign index`, nnssl's pretrain_data.json, or a folder of images.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="STORE", help="The folder to write; an unfinished one is completed.")
    ],
    spacing: Annotated[
        str,
        typer.Option(
            metavar="D,H,W|none",
            help="Voxel size in mm; one number for all axes, or [b]none[/b] to keep each image's own.",
        ),
    ] = "1,1,1",
    normalise: Annotated[
        str,
        typer.Option(
            metavar="zscore|foreground|none",
            help="[b]zscore[/b]: mean and deviation over the whole crop (as nnssl and nnU-Net); [b]foreground[/b]: "
            "over its non-zero voxels; [b]none[/b].",
        ),
    ] = "zscore",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes; 0 works in this one. Default: one per core.", show_default=False),
    ] = None,
    fill_nonfinite: Annotated[
        bool,
        typer.Option(
            "--fill-nonfinite", help="Write 0 in place of NaN and infinity instead of setting the image aside."
        ),
    ] = False,
) -> None:
    """Orient, crop, resample and normalise every image, and store it.

    Images are turned to one orientation (LPS) and cropped to their content.
    A second run does only what is missing. Images that cannot be used are set
    aside in STORE/report.json with the reason; no single file stops the run.

    [b]Examples[/b]

    viewalign prepare catalogue.json -o store

    viewalign prepare ~/scans -o store --spacing 1.5 --workers 8

    viewalign prepare catalogue.json -o native --spacing none

    Exit code: 0 all went in, 3 some were set aside, 1 nothing could be done.
    """
    settings = _settings(spacing, normalise, fill_nonfinite)
    try:
        report = _run(catalogue, out, settings, workers)
    except KeyboardInterrupt:
        typer.echo("Stopped. What is done stays; run the same command again to go on.", err=True)
        raise typer.Exit(130) from None
    _print_end(out, report)
    if report.prepared == 0:
        raise UserError(
            f"None of the {len(report.refused)} images could be used. The reasons are in {out / 'report.json'}."
        )
    raise typer.Exit(3 if report.refused else 0)


def _settings(spacing: str, normalise: str, fill_nonfinite: bool) -> PrepareSettings:
    from pydantic import ValidationError

    from viewalign.volumes.recipe import PrepareSettings

    values = {"spacing": _spacing(spacing), "normalise": normalise, "fill_nonfinite": fill_nonfinite}
    try:
        return PrepareSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name, message = first["loc"][0], first["msg"].removeprefix("Value error, ")
        raise UserError(f"--{name}: {message[0].lower()}{message[1:]}, not {values[str(name)]}.") from None


def _spacing(text: str) -> tuple[float, ...] | None:
    if text.strip().lower() == "none":
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UserError(f"--spacing {text}: give one or three voxel sizes in mm, such as 1 or 3,1,1, or `none`.")
    return numbers


def _run(catalogue: Path, out: Path, settings: PrepareSettings, workers: int | None) -> PrepareReport:
    from viewalign.cli.index import look, nothing_found
    from viewalign.cli.progress import progress_bar
    from viewalign.volumes.catalogue import read_catalogue
    from viewalign.volumes.indexing import read_refused
    from viewalign.volumes.prepare import prepare_records

    if catalogue.is_dir():
        found = look([str(catalogue)])
        if found.images == 0 and not found.refused:
            raise UserError(nothing_found([str(catalogue)], found))
        collection, refused = found.collection, found.refused
    else:
        collection, refused = read_catalogue(catalogue), read_refused(catalogue)
    records = list(collection.records(catalogue.absolute().parent))
    if not records and not refused:
        raise UserError(f"The catalogue {catalogue} holds no images.")
    latest: list[Progress] = []
    with progress_bar("Preparing", lambda: _note(latest[-1]) if latest else "") as report:

        def listen(progress: Progress) -> None:
            latest[:] = [progress]
            report(progress.done, progress.total)

        return prepare_records(records, out, settings, workers, refused, listen)


def _note(progress: Progress) -> str:
    parts = [(progress.skipped, "already there"), (progress.refused, "set aside")]
    return ", ".join(f"{count} {what}" for count, what in parts if count)


def _print_end(out: Path, report: PrepareReport) -> None:
    from rich.console import Console

    from viewalign.cli.index import show_refused

    console = Console()
    show_refused(console, [(refusal.file, refusal.reason) for refusal in report.refused])
    earlier = report.prepared - report.made - report.skipped
    counts = [
        f"{report.prepared} images in the store",
        f"{report.made} prepared now",
        f"{report.skipped} already there" if report.skipped else "",
        f"{earlier} of earlier runs on other catalogues" if earlier > 0 else "",
        f"{len(report.refused)} set aside" if report.refused else "",
    ]
    lines = [
        "; ".join(filter(None, counts)) + ".",
        f"Store:  {out} ({_megabytes(out)})",
        f"Report: {out / 'report.json'}",
    ]
    if report.prepared:
        lines.append(f"Next:   viewalign pretrain cva-resenc-xs data={out} out=run")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _megabytes(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return f"{size / 1000:.1f} GB" if size >= 1000 else f"{size:.1f} MB"
