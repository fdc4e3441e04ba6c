"""`viewalign verify`: check a store, a run or an export for damage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Result
from viewalign.utils.text import counted


def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A store, a run or an export.", show_default=False)],
) -> Result:
    """Compare all files of a store, a run or an export with their checksums.

    All files are read. Training checks each image of a store when it first
    reads it, and each checkpoint when it is loaded; this command finds damage earlier.

    [b]Examples[/b]

    viewalign verify store

    viewalign verify run

    Exit code: 0 no damage, 3 some files are damaged.
    """
    from viewalign.utils.console import EXIT_CODE
    from viewalign.utils.io import visible
    from viewalign.utils.progress import progress_bar
    from viewalign.weights import verification

    with progress_bar("Verifying") as report:
        found = verification.verify(folder, report)
    what = {"store": "images", "run": "checkpoints", "export": "files"}[found.kind]
    for path, reason in found.problems:
        typer.echo(visible(f"  {path}: {reason}"), err=True)
    text = f"The {found.kind} {folder}: {found.checked} {what} checked, {counted(len(found.problems), 'problem')}."
    facts = {"folder": folder, "kind": found.kind, "checked": found.checked, "problems": found.problems}
    return Result(facts, text, EXIT_CODE if found.problems else 0)
