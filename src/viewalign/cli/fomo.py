"""`viewalign fomo`: the FOMO25 challenge's tasks 1 and 3, from its folders to a container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

fomo = typer.Typer(no_args_is_help=True, help="FOMO25: prepare tasks 1 and 3, and make a submission.")


@fomo.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="The folder with preprocessed/ and labels/.", show_default=False)],
    number: Annotated[int, typer.Option("--task", help="1 (infarct) or 3 (age).", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The task's folder.", show_default=False)],
) -> None:
    """Make a task of the challenge's folder; then `viewalign finetune` with the recipe of that task.

    Task 2 is a segmentation: put its images and masks into nnU-Net's layout and use `viewalign finetune segmentation`.
    """
    from viewalign.errors import UserError
    from viewalign.transfer.tasks.converters import convert
    from viewalign.transfer.tasks.converters.found import Wanted

    if number not in (1, 3):
        raise UserError(
            "--task takes 1 or 3; task 2 goes through nnU-Net's layout and `viewalign finetune segmentation`."
        )
    found = convert("fomo", source, out, Wanted(fomo_task=number))
    typer.echo(f"{len(found.cases)} cases in {out}")
    for line in found.left_out:
        typer.echo(f"  left out: {line}", err=True)


@fomo.command()
def submission(
    model: Annotated[Path, typer.Argument(help="A fine-tuning's folder.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.", show_default=False)],
) -> None:
    """Write predict.py, the models, and definitions for Apptainer and Docker. Nothing in them needs a network."""
    from viewalign.transfer.tasks.fomo_submission import write_submission

    for file in sorted(write_submission(model, out).iterdir()):
        typer.echo(f"  {file}")
