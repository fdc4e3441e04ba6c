"""`viewalign index`: list images in a catalogue."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from viewalign.cli.grammar import Result, command, settings_of
from viewalign.utils.console import EXIT_CODE, print_first, show_excluded, stages
from viewalign.utils.text import counted, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


DATASETS_SHOWN = 10


def index(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Folders (recursively), files, patterns in quotes, a CSV table, a BIDS, nnU-Net, OpenMind, "
            "FOMO60K or FOMO300K dataset, or nnssl's pretrain_data.json.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="CATALOGUE", help="The catalogue to write.")] = Path(
        "catalogue.json"
    ),
) -> Result:
    r"""List the 3D images under SOURCE in a catalogue.

    Only headers are read; no file is changed or renamed.

    Reads NIfTI, NRRD, MetaImage, Analyze, FreeSurfer and MINC (.nii .nii.gz .nrrd .nhdr
    .mha .mhd .hdr .mgz .mgh .mnc) and DICOM.
    Files without a volume (2D, 4-D, colour, missing slices, broken links …)
    are excluded and listed with the reason in CATALOGUE.excluded.json. CATALOGUE.audit.tsv lists
    suspect images: duplicates, extreme voxel sizes, unusual orientations, few slices … Edit it and
    set [b]exclude=FILE[/b] to leave out the images that remain in it. CATALOGUE.html shows examples.

    The subject is that of a table's column, or inferred from [b]sub-01/ses-02[/b] in the path,
    from names like [b]patient01_study1_T1W[/b] and those of known datasets; otherwise each
    file is a separate subject, which is reported.
    No subject is ever in both training and validation.

    [b]Examples[/b]

    viewalign index ~/scans -o catalogue.json

    viewalign index 'study/*/T1.nii.gz' more_scans -o catalogue.json

    viewalign index images.csv      # columns path, subject, modality, …

    viewalign index ~/scans subject_pattern='(?P<subject>P\d+)_(?P<session>v\d)'

    Exit code: 0 all files are in the catalogue, 3 some are excluded, 1 no volume found.
    """
    import viewalign
    from viewalign.data.audit import findings_path
    from viewalign.data.indexing import excluded_path
    from viewalign.data.summary import summarise
    from viewalign.reports.catalogue import page_path

    with stages() as report:
        found = viewalign.index(sources, out, on_progress=report, **settings_of(context))
    summary = {key: value for key, value in summarise(found).items() if key != "entries"}
    lines = [f"Catalogue: {out}", f"Page:      {page_path(out)}"]
    lines += [f"Suspect:   {findings_path(out)}"] if summary["suspects"] else []
    lines += [f"Excluded:  {excluded_path(out)}"] if found.excluded else []
    store = f"{out.stem}-store" if Path("store").exists() else "store"  # that of another catalogue is not added to
    lines.append(f"Next: {command('prepare', out, '-o', store)}")
    facts = {"catalogue": out, "page": page_path(out), "excluded_files": excluded_path(out), **summary}
    return Result(facts, partial(_print, summary, lines), EXIT_CODE if found.excluded else 0)


def _print(summary: dict[str, Any], lines: list[str]) -> None:
    from rich.console import Console

    console = Console()
    show_excluded(console, [(each["file"], each["reason"]) for each in summary["excluded"]])
    show_table(console, summary)
    show_suspects(console, summary["suspects"])
    show_audit(console, summary["audit"])
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_suspects(console: Console, suspects: list[dict[str, Any]]) -> None:
    """Print the first few suspect images."""
    print_first(console, [f"suspect: {each['file']}: {'; '.join(each['reasons'])}" for each in suspects])


def show_audit(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print how many images have each kind of finding, and what includes or excludes them."""
    if rows:
        console.print("Audit", style="bold")
    for row in rows:
        console.print(
            f"  {row['count']:>6}  {row['title']}: {row['option']}", highlight=False, markup=False, soft_wrap=True
        )


def show_table(console: Console, summary: dict[str, Any]) -> None:
    """Print what was found."""
    from rich.markup import escape
    from rich.table import Table

    from viewalign.data.inputs import ignored_types

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    datasets = summary["datasets"]
    for each in datasets[:DATASETS_SHOWN]:
        images, subjects = counted(each["images"], "image"), counted(each["subjects"], "subject")
        table.add_row("Dataset", escape(f"{each['name']}: {images} of {subjects}"))
    if len(datasets) > DATASETS_SHOWN:
        table.add_row("", f"… and {counted(len(datasets) - DATASETS_SHOWN, 'more dataset')}")
    for name in ("subjects", "sessions", "images"):
        table.add_row(name.capitalize(), str(summary[name]))
    table.add_row("Modalities", escape(", ".join(f"{name} {count}" for name, count in summary["modalities"].items())))
    table.add_row("Shape (D, H, W)", _spread(summary["shape"]))
    table.add_row("Spacing (D, H, W)", _spread(summary["spacing"]) + " mm")
    table.add_row("Size", size_text(summary["bytes"]))
    table.add_row("Suspect", str(len(summary["suspects"])))
    table.add_row("Excluded", str(len(summary["excluded"])))
    passed = summary["passed_over"]
    if passed["other_files"]:
        table.add_row("Ignored", f"{counted(passed['other_files'], 'file')}: {ignored_types(passed['other_types'])}")
    for note in passed["notes"]:
        table.add_row("Note", escape(note))
    console.print(table)


def _spread(values: dict[str, list[float]]) -> str:
    """Write `median (smallest to largest)`, each per axis."""
    low, middle, high = ("×".join(f"{value:.4g}" for value in values[key]) for key in ("smallest", "middle", "largest"))
    return middle if low == high else f"{middle} ({low} to {high})"
