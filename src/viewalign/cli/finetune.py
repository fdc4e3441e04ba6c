"""`viewalign finetune`: the group of commands that carry an encoder to a task."""

from __future__ import annotations

import typer

from viewalign.cli.finetune_global import classification, regression
from viewalign.cli.finetune_segmentation import segmentation

finetune = typer.Typer(no_args_is_help=True, help="Carry a pretrained encoder to a task, with labels.")
finetune.command()(segmentation)
finetune.command()(classification)
finetune.command()(regression)


@finetune.callback()
def group() -> None:
    """Carry a pretrained encoder to a task, with labels."""
