"""`viewalign fomo`: the FOMO25 challenge's tasks, from its folders to a container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Command, Result, settings_of

fomo = typer.Typer(no_args_is_help=True, help="FOMO25: convert its tasks, and build a submission.")


@fomo.command(cls=Command)
def prepare(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="The folder with preprocessed/ and labels/.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The task's or dataset's folder.", show_default=False)],
) -> Result:
    """Convert a task of the challenge; then fine-tune with the recipe of that task.

    Task 2 is a segmentation: it becomes a dataset of nnU-Net, with every image in LPS, for
    `viewalign finetune segmentation`.

    [b]Example[/b]

    viewalign fomo prepare finetune_task1 -o task task=1
    """
    from viewalign.compat.fomo import FomoSettings, convert_task
    from viewalign.utils.settings import checked

    cases, left_out = convert_task(source, out, checked(FomoSettings, settings_of(context)).task)
    for line in left_out:
        typer.echo(f"  excluded: {line}", err=True)
    return Result({"folder": out, "cases": cases, "excluded": left_out}, f"{cases} cases in {out}")


@fomo.command(cls=Command)
def submission(
    model: Annotated[Path, typer.Argument(help="A fine-tuning's folder.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.", show_default=False)],
) -> Result:
    """Write predict.py, the models, and definitions for Apptainer and Docker; they need no network."""
    from viewalign.compat.fomo_submission import write_submission

    files = sorted(write_submission(model, out).iterdir())
    return Result({"folder": out, "files": files}, "\n".join(f"  {file}" for file in files))
