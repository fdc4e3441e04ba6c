"""`viewalign fomo`: the FOMO25 challenge's three tasks, from its folders to a container."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Annotated

import typer

fomo = typer.Typer(no_args_is_help=True, help="FOMO25: prepare its tasks, and make a submission.")


@fomo.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="The folder with preprocessed/ and labels/.", show_default=False)],
    number: Annotated[int, typer.Option("--task", help="1 (infarct), 2 (meningioma) or 3 (age).", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The task's or dataset's folder.", show_default=False)],
) -> None:
    """Make a task of the challenge's folder; then `viewalign finetune` with the recipe of that task.

    Task 2 is a segmentation: it becomes a dataset of nnU-Net, with every image in LPS, for
    `viewalign finetune segmentation --dataset FOLDER`.
    """
    from viewalign.compat.task_conversion import Wanted
    from viewalign.compat.task_layouts import convert
    from viewalign.errors import UserError

    if number not in (1, 2, 3):
        raise UserError(f"--task takes 1, 2 or 3, not {number}.")
    if number == 2:
        from viewalign.compat.fomo import prepare as prepare_segmentation

        cases: Sized
        cases, left_out = prepare_segmentation(source, out)
    else:
        found = convert("fomo", source, out, Wanted(fomo_task=number))
        cases, left_out = found.cases, list(found.left_out)
    typer.echo(f"{len(cases)} cases in {out}")
    for line in left_out:
        typer.echo(f"  left out: {line}", err=True)


@fomo.command()
def submission(
    model: Annotated[Path, typer.Argument(help="A fine-tuning's folder.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.", show_default=False)],
) -> None:
    """Write predict.py, the models, and definitions for Apptainer and Docker. Nothing in them needs a network."""
    from viewalign.compat.fomo_submission import write_submission

    for file in sorted(write_submission(model, out).iterdir()):
        typer.echo(f"  {file}")
