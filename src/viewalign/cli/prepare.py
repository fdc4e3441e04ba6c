"""SIGTERM, as schedulers send it before they kill, ends a command in the same order as Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viewalign.errors import UserError


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM into `KeyboardInterrupt("SIGTERM")` while the block runs; only the main thread can."""
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


if TYPE_CHECKING:
    from viewalign.data.catalogue import Record
    from viewalign.data.inputs import Catalogue
    from viewalign.data.settings import PrepareSettings


def catalogue_of(path: Path, frames: bool = False) -> Catalogue:
    """Read a catalogue, or index a folder, with a progress bar; see `volumes.given`."""
    from viewalign.data import inputs
    from viewalign.utils.console import progress_bar

    with progress_bar("Reading headers") as report:
        return inputs.catalogue_of(path, frames, report)


def settings_of(spacing: str, chosen: Mapping[str, Any], records: Sequence[Record]) -> PrepareSettings:
    """Make settings of options; `median` spacing is taken from the headers of `records`.

    Raises:
        UserError: an option that does not fit.
    """
    from viewalign.data.inputs import settings_from

    size = _spacing(spacing)
    settings = settings_from({**chosen, "spacing": None if size == "median" else size}, "--")
    return settings.model_copy(update={"spacing": _median(records)}) if size == "median" else settings


def choices_of(
    interpolation: str,
    normalise: str,
    percentiles: str,
    window: str | None,
    dtype: str,
    view: str | None,
    fill_nonfinite: bool = False,
    frames: str = "refuse",
) -> dict[str, Any]:
    """Collect options into values of `PrepareSettings`, numbers read."""
    return {
        "normalise": normalise,
        "interpolation": interpolation,
        "percentiles": numbers_of("percentiles", percentiles, 2),
        "window": numbers_of("window", window, 2),
        "dtype": dtype,
        "view": numbers_of("view", view, 3, whole=True),
        "fill_nonfinite": fill_nonfinite,
        "frames": frames,
    }


def numbers_of(option: str, text: str | None, count: int, whole: bool = False) -> tuple[float, ...] | None:
    """Read `1,2,3` (or one number for all) as numbers; None stays None.

    Raises:
        UserError: other than one or `count` numbers.
    """
    if text is None:
        return None
    try:
        numbers = tuple((int if whole else float)(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1 and count == 3:
        numbers *= 3
    if len(numbers) != count:
        wanted = "one or three numbers, such as 1 or 3,1,1" if count == 3 else "two numbers LOW,HIGH"
        raise UserError(f"--{option} {text}: give {wanted}.")
    return numbers


def _spacing(text: str) -> tuple[float, ...] | str | None:
    word = text.strip().lower()
    if word in {"none", "median"}:
        return None if word == "none" else word
    try:
        return numbers_of("spacing", text, 3)
    except UserError:
        raise UserError(
            f"--spacing {text}: give one or three voxel sizes in mm, such as 1 or 3,1,1, or `median` or `none`."
        ) from None


def _median(records: Sequence[Record]) -> tuple[float, float, float]:
    from rich.console import Console

    from viewalign.data.inputs import median_spacing
    from viewalign.utils.console import progress_bar

    with progress_bar("Reading voxel sizes") as report:
        found = median_spacing(records, lambda done: report(done, len(records)))
    words = ",".join(f"{size:g}" for size in found)
    Console(stderr=True).print(
        f"The median voxel size is {words} mm (--spacing {words} says the same).", highlight=False
    )
    return found


_VOXELS = "What is stored"
_SCALE = "How the work is done"
_LIMITS = "What one file may cost"

Spacing = Annotated[
    str,
    typer.Option(
        metavar="D,H,W|median|none",
        help="Voxel size in mm; one number for all axes, [b]median[/b] for the catalogue's, or [b]none[/b] to keep "
        "each image's own.",
        rich_help_panel=_VOXELS,
    ),
]

InterpolationName = Annotated[
    str,
    typer.Option(
        metavar="linear|cubic",
        help="[b]cubic[/b]: B-splines of order 3, as nnssl and nnU-Net.",
        rich_help_panel=_VOXELS,
    ),
]

Normalise = Annotated[
    str,
    typer.Option(
        metavar="zscore|foreground|percentile|window|none",
        help="[b]zscore[/b]: mean and deviation over the whole crop (as nnssl and nnU-Net); [b]foreground[/b]: "
        "over its non-zero voxels; [b]percentile[/b]: clipped at --percentiles, then zscore; [b]window[/b]: "
        "clipped at --window, mapped to -1..1; [b]none[/b].",
        rich_help_panel=_VOXELS,
    ),
]

Percentiles = Annotated[
    str, typer.Option(metavar="LOW,HIGH", help="Where [b]percentile[/b] clips.", rich_help_panel=_VOXELS)
]

Window = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="For CT, in Hounsfield units, such as -1000,1000; with --normalise window.",
        rich_help_panel=_VOXELS,
    ),
]

NumberTypeName = Annotated[
    str,
    typer.Option(
        metavar="float32|float16|int16",
        help="How voxels are stored; the report states the error of the 16-bit ones.",
        rich_help_panel=_VOXELS,
    ),
]

View = Annotated[
    str | None,
    typer.Option(
        metavar="D,H,W",
        help="Size of the views that will be cut, so that blocks fit; default suits 64 to 96.",
        rich_help_panel=_VOXELS,
    ),
]

FramesName = Annotated[
    str,
    typer.Option(
        metavar="refuse|channels|volumes",
        help="What becomes of 4-D NIfTI: set aside, a channel or an image a frame (a catalogue: index --frames).",
        rich_help_panel=_VOXELS,
    ),
]

FillNonfinite = Annotated[
    bool,
    typer.Option(
        "--fill-nonfinite",
        help="Write 0 in place of NaN and infinity instead of setting the image aside.",
        rich_help_panel=_VOXELS,
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes; 0 works in this one, without time limit. Default: one per core.",
        show_default=False,
        rich_help_panel=_SCALE,
    ),
]

ShardText = Annotated[
    str,
    typer.Option(
        metavar="i/n",
        help="Do the i-th of n parts, as in an array job; the last ends the store.",
        rich_help_panel=_SCALE,
    ),
]

ExecutorName = Annotated[str, typer.Option(metavar="local|dask", help="Who does the work.", rich_help_panel=_SCALE)]

Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Dask's scheduler, tcp://host:8786, or its file.", rich_help_panel=_SCALE),
]

TimeLimit = Annotated[
    float,
    typer.Option(min=1.0, metavar="SECONDS", help="A file that takes longer is set aside.", rich_help_panel=_LIMITS),
]

MaxVoxels = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Set larger images aside, before or after resampling. Default: what this machine's memory allows.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]

CataloguePath = Annotated[
    Path,
    typer.Argument(
        metavar="CATALOGUE",
        help="A catalogue of `viewalign index`, nnssl's pretrain_data.json, or a folder of images.",
    ),
]


if TYPE_CHECKING:
    from viewalign.data.inputs import Catalogue
    from viewalign.data.layout import Progress
    from viewalign.data.prepare import PrepareReport, Shard
    from viewalign.data.settings import Limits, PrepareSettings


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
    from viewalign.data.prepare import Shard
    from viewalign.data.settings import Limits, voxels_that_fit

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
            f"None of the {len(report.excluded)} images could be used. The reasons are in {out / 'report.json'}."
        )
    raise typer.Exit(3 if report.excluded else 0)


def _run(
    found: Catalogue,
    out: Path,
    settings: PrepareSettings,
    workers: int | None,
    part: Shard,
    scheduler: str | None,
    limits: Limits,
) -> PrepareReport:
    from viewalign.data.prepare import prepare_records
    from viewalign.data.worker_pool import dask_cluster
    from viewalign.utils.console import progress_bar

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
            excluded=found.excluded,
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
    parts = [(progress.skipped, "already there"), (progress.excluded, "set aside")]
    return ", ".join(f"{count} {what}" for count, what in parts if count)


def _print_end(out: Path, report: PrepareReport, part: Shard) -> None:
    from rich.console import Console

    from viewalign.utils.console import show_refused

    console = Console()
    show_refused(console, [(exclusion.file, exclusion.reason) for exclusion in report.excluded])
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
        f"{len(report.excluded)} set aside" if report.excluded else "",
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
