"""`viewalign task`: make a task of what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

task = typer.Typer(no_args_is_help=True, help="Tasks with one answer a case: make one of other layouts.")


@task.callback()
def group() -> None:
    """Tasks with one answer a case: make one of other layouts."""


@task.command()
def convert(
    layout: Annotated[str, typer.Argument(help="nnunet, ssl3d, fomo or bids.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="The folder; it is only read.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The task's folder.", show_default=False)],
    kind: Annotated[
        str | None, typer.Option(help="binary, multiclass, multilabel or regression; default told by the labels.")
    ] = None,
    target: Annotated[str, typer.Option(help="BIDS: the column of participants.tsv.")] = "",
    channels: Annotated[str, typer.Option(help="Channels as T1w,FLAIR or swi|t2s; default all there are.")] = "",
    number: Annotated[int | None, typer.Option("--task", help="FOMO: 1 (infarct) or 3 (age).")] = None,
) -> None:
    """Write task.yaml and manifest.csv for a folder in another tool's layout; no image is copied."""
    from viewalign.compat.task_conversion import Wanted
    from viewalign.compat.task_layouts import convert as convert_layout
    from viewalign.errors import UserError

    if kind not in (None, "binary", "multiclass", "multilabel", "regression"):
        raise UserError(f"--kind takes binary, multiclass, multilabel or regression, not '{kind}'.")
    words = tuple(word for word in channels.split(",") if word)
    found = convert_layout(layout, source, out, Wanted(kind, target, words, number))  # type: ignore[arg-type]
    typer.echo(f"{found.spec.name}: {found.spec.kind}, {len(found.cases)} cases in {out}")
    for line in found.left_out[:20]:
        typer.echo(f"  left out: {line}", err=True)
    if len(found.left_out) > 20:
        typer.echo(f"  and {len(found.left_out) - 20} more", err=True)
