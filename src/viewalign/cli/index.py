"""`viewalign index`: look what is there, read the headers, write a catalogue."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from viewalign.volumes.indexing import Index

REFUSED_SHOWN = 10


def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Folders (searched with all that is below), single files, or patterns in quotes.",
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
) -> None:
    r"""List the 3D images under SOURCE in a catalogue.

    Only headers are read; no file is touched or renamed.

    Reads NIfTI, NRRD and MetaImage (.nii .nii.gz .nrrd .nhdr .mha .mhd).
    What cannot be a volume (2D, 4-D, colour, broken links …) is set aside,
    with the reason, in CATALOGUE.refused.json.

    Whose an image is comes from [b]sub-01/ses-02[/b] in the path, from names like
    [b]patient01_study1_T1W[/b], or else every file is a subject of its own.
    It matters: no subject is ever in both training and validation.

    [b]Examples[/b]

    viewalign index ~/scans -o catalogue.json

    viewalign index 'study/*/T1.nii.gz' more_scans -o catalogue.json

    viewalign index ~/scans --subject-pattern '(?P<subject>P\d+)_(?P<session>v\d)'

    Exit code: 0 all taken in, 3 some set aside, 1 no volume found.
    """
    from rich.console import Console

    from viewalign.volumes.catalogue import write_catalogue
    from viewalign.volumes.indexing import write_refused

    found = look(sources, subject_pattern, labels)
    console = Console()
    show_refused(console, [(refusal.file, refusal.reason) for refusal in found.refused])
    if found.images == 0:
        raise UserError(nothing_found(sources, found))
    try:
        write_catalogue(found.collection, out)
        refused_list = write_refused(out, found.refused)
    except OSError as error:
        raise UserError(f"The catalogue {out} cannot be written: {error.strerror}.") from None
    show_table(console, found)
    console.print(f"Catalogue: {out}", highlight=False, soft_wrap=True)
    if found.refused:
        console.print(f"Set aside: {refused_list}", highlight=False, soft_wrap=True)
    console.print(f"Next: viewalign prepare {out} -o store", highlight=False, soft_wrap=True)
    raise typer.Exit(3 if found.refused else 0)


def look(sources: list[str], subject_pattern: str | None = None, labels: bool = False) -> Index:
    """Index sources with a progress bar.

    Raises:
        UserError: a source does not exist, or the pattern is no regular expression with a known group.
    """
    from viewalign.cli.progress import progress_bar
    from viewalign.volumes.indexing import index_sources
    from viewalign.volumes.sources import FindOptions

    options = FindOptions(_compiled(subject_pattern), labels)
    with progress_bar("Reading headers") as report:
        return index_sources(sources, options, on_file=report)


def nothing_found(sources: list[str], found: Index) -> str:
    """Say why there is nothing to work with, and what would help."""
    text = f"No volumes were found in {', '.join(sources)}."
    if found.refused:
        first = found.refused[0]
        text += f" {len(found.refused)} files were set aside; the first: {first.file}: {first.reason}."
    if found.label_files:
        text += f" {found.label_files} files look like label maps by their names (--labels takes them in)."
    if found.dicom_files:
        text += f" There are {found.dicom_files} DICOM files, which are not read yet: convert them with dcm2niix first."
    if not (found.refused or found.label_files or found.dicom_files):
        text += " Files that end in .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd are read."
    return text


def show_refused(console: Console, refused: list[tuple[str, str]]) -> None:
    """Print the first few files that were set aside."""
    for file, reason in refused[:REFUSED_SHOWN]:
        console.print(f"  set aside: {file}: {reason}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    if len(refused) > REFUSED_SHOWN:
        console.print(f"  … and {len(refused) - REFUSED_SHOWN} more", style="yellow", highlight=False)


def show_table(console: Console, found: Index) -> None:
    """Print what was found."""
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    for dataset in found.collection.datasets.values():
        images = sum(
            len(session.images) for subject in dataset.subjects.values() for session in subject.sessions.values()
        )
        table.add_row("Dataset", f"{dataset.name}: {images} images of {len(dataset.subjects)} subjects")
    table.add_row("Subjects", str(found.subjects()))
    table.add_row("Sessions", str(found.sessions()))
    table.add_row("Images", str(found.images))
    table.add_row("Modalities", ", ".join(f"{name} {count}" for name, count in found.modalities.most_common()))
    table.add_row("Shape (D, H, W)", _spread([list(map(float, shape)) for shape in found.shapes]))
    table.add_row("Spacing (D, H, W)", _spread([list(spacing) for spacing in found.spacings]) + " mm")
    table.add_row("Set aside", str(len(found.refused)))
    if found.label_files:
        table.add_row("Passed over", f"{found.label_files} label maps, told by their names (--labels takes them in)")
    if found.dicom_files:
        table.add_row("Passed over", f"{found.dicom_files} DICOM files, not read yet (convert them with dcm2niix)")
    if found.other_files > found.dicom_files:
        table.add_row("Passed over", f"{found.other_files - found.dicom_files} files of other types")
    console.print(table)


def _spread(values: list[list[float]]) -> str:
    """Return `median (smallest to largest)`, each taken axis by axis."""
    import numpy as np

    array = np.array(values)
    middle, low, high = (
        "×".join(f"{value:.4g}" for value in row)
        for row in (np.quantile(array, 0.5, axis=0, method="nearest"), array.min(axis=0), array.max(axis=0))
    )
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
