"""`viewalign index`: look what is there, read the headers, write a catalogue."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viewalign.errors import UserError
from viewalign.utils.console import REFUSED_SHOWN, show_refused

if TYPE_CHECKING:
    from rich.console import Console

    from viewalign.data.indexing import Index

DATASETS_SHOWN = 10


def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders (searched with all that is below), files, patterns in quotes, a CSV table, a BIDS, nnU-Net, "
            "OpenMind or FOMO60K dataset, or nnssl's pretrain_data.json.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="CATALOGUE", help="The catalogue to write.", show_default=True)
    ] = Path("catalogue.json"),
    subject_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Tells whose a file is: a regular expression searched in its path below SOURCE, with named groups "
            "[b]subject[/b], [b]session[/b], [b]modality[/b] (any of them).",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Take label maps in too ([i]…_seg[/i], [i]…_mask[/i], [i]labelsTr/[/i]).")
    ] = False,
    frames: Annotated[
        bool,
        typer.Option("--frames", help="Take in 4-D NIfTI too; `prepare --frames` says what becomes of it."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read headers; 0 works in this one. Default: one per core from 500 files on.",
            show_default=False,
        ),
    ] = None,
) -> None:
    r"""List the 3D images under SOURCE in a catalogue.

    Only headers are read; no file is touched or renamed.

    Reads NIfTI, NRRD, MetaImage (.nii .nii.gz .nrrd .nhdr .mha .mhd) and DICOM.
    What cannot be a volume (2D, 4-D, colour, missing slices, broken links …) is
    set aside, with the reason, in CATALOGUE.excluded.json. CATALOGUE.index.json
    and CATALOGUE.html hold the figures, and what looks strange: duplicates,
    extreme voxel sizes, odd orientations, few slices.

    Whose an image is comes from [b]sub-01/ses-02[/b] in the path, from names like
    [b]patient01_study1_T1W[/b], or else every file is a subject of its own.
    It matters: no subject is ever in both training and validation.

    [b]Examples[/b]

    viewalign index ~/scans -o catalogue.json

    viewalign index 'study/*/T1.nii.gz' more_scans -o catalogue.json

    viewalign index images.csv    [i](columns path, subject, session, modality, dataset, masks)[/i]

    viewalign index Dataset004_Hippocampus bids_study dicom_export -o all.json

    viewalign index ~/scans --subject-pattern '(?P<subject>P\d+)_(?P<session>v\d)'

    Exit code: 0 all taken in, 3 some set aside, 1 no volume found.
    """
    from rich.console import Console

    from viewalign.data.inputs import nothing_found
    from viewalign.data.summary import summarise

    found = look(sources, subject_pattern, labels, workers, frames)
    console = Console()
    show_refused(console, [(exclusion.file, exclusion.reason) for exclusion in found.excluded])
    if found.images == 0:
        raise UserError(nothing_found(sources, found))
    summary = summarise(found)
    written = _write(found, summary, out)
    show_table(console, summary)
    show_suspects(console, summary["suspects"])
    for line in (*written, f"Next: viewalign prepare {out} -o store"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(3 if found.excluded else 0)


def _write(found: Index, summary: dict[str, Any], out: Path) -> list[str]:
    """Write the catalogue and what goes with it; return a line for each file."""
    from viewalign.data.catalogue import write_catalogue
    from viewalign.data.indexing import write_refused
    from viewalign.data.summary import write_summary
    from viewalign.reports.catalogue import write_index_page

    try:
        write_catalogue(found.collection, out)
        refused_list = write_refused(out, found.excluded)
        figures = write_summary(summary, out)
        page = write_index_page(summary, out)
    except OSError as error:
        raise UserError(f"The catalogue {out} cannot be written: {error.strerror}.") from None
    lines = [f"{what + ':':<10} {path}" for what, path in (("Catalogue", out), ("Figures", figures), ("Page", page))]
    return [*lines, f"Set aside: {refused_list}"] if found.excluded else lines


def look(
    sources: list[str],
    subject_pattern: str | None = None,
    labels: bool = False,
    workers: int | None = None,
    frames: bool = False,
) -> Index:
    """Index sources with a progress bar.

    Raises:
        UserError: a source does not exist, or the pattern is no regular expression with a known group.
    """
    from viewalign.data.indexing import index_sources
    from viewalign.data.sources import FindOptions
    from viewalign.utils.console import progress_bar

    with progress_bar("Reading headers") as report:
        options = FindOptions(_compiled(subject_pattern), labels, report, frames)
        return index_sources(sources, options, on_file=report, workers=workers)


def show_suspects(console: Console, suspects: list[dict[str, Any]]) -> None:
    """Print the first few images that were taken in but look strange."""
    for each in suspects[:REFUSED_SHOWN]:
        line = f"  suspect: {each['file']}: {'; '.join(each['reasons'])}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(suspects) > REFUSED_SHOWN:
        console.print(f"  … and {len(suspects) - REFUSED_SHOWN} more", highlight=False)


def show_table(console: Console, summary: dict[str, Any]) -> None:
    """Print what was found."""
    from rich.markup import escape
    from rich.table import Table

    from viewalign.data.summary import size_text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    datasets = summary["datasets"]
    for each in datasets[:DATASETS_SHOWN]:
        table.add_row("Dataset", escape(f"{each['name']}: {each['images']} images of {each['subjects']} subjects"))
    if len(datasets) > DATASETS_SHOWN:
        table.add_row("", f"… and {len(datasets) - DATASETS_SHOWN} more datasets")
    for name in ("subjects", "sessions", "images"):
        table.add_row(name.capitalize(), str(summary[name]))
    table.add_row("Modalities", escape(", ".join(f"{name} {count}" for name, count in summary["modalities"].items())))
    table.add_row("Shape (D, H, W)", _spread(summary["shape"]))
    table.add_row("Spacing (D, H, W)", _spread(summary["spacing"]) + " mm")
    table.add_row("Size", size_text(summary["bytes"]))
    table.add_row("Suspect", str(len(summary["suspects"])))
    table.add_row("Set aside", str(len(summary["excluded"])))
    passed = summary["passed_over"]
    if passed["label_maps"]:
        table.add_row("Passed over", f"{passed['label_maps']} label maps, told by their names (--labels takes them in)")
    if passed["other_files"]:
        table.add_row("Passed over", f"{passed['other_files']} files that are no images")
    for note in passed["notes"]:
        table.add_row("Note", escape(note))
    console.print(table)


def _spread(values: dict[str, list[float]]) -> str:
    """Write `middle (smallest to largest)`, each taken axis by axis."""
    low, middle, high = ("×".join(f"{value:.4g}" for value in values[key]) for key in ("smallest", "middle", "largest"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--subject-pattern {pattern} is no regular expression: {error}.") from None
    if not set(compiled.groupindex) & {"subject", "session", "modality"}:
        raise UserError(f"--subject-pattern {pattern} has no group named subject, session or modality: (?P<subject>…).")
    return compiled
