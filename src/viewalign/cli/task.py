"""`viewalign task`: tasks for classification and regression from other layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Command, Result, settings_of

task = typer.Typer(no_args_is_help=True, help="Tasks for classification and regression: convert other layouts.")


@task.callback()
def group() -> None:
    """Tasks for classification and regression: convert other layouts."""


@task.command(cls=Command)
def convert(
    context: typer.Context,
    layout: Annotated[str, typer.Argument(help="nnunet, ssl3d, fomo or bids.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="The folder to convert; it is not changed.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The task's folder.", show_default=False)],
) -> Result:
    """Write task.yaml and manifest.csv for a folder in another tool's layout; no image is copied.

    [b]Example[/b]

    viewalign task convert bids ABIDE -o task target=group channels=T1w
    """
    from viewalign.compat.task_conversion import ConvertSettings
    from viewalign.compat.task_layouts import convert as convert_layout
    from viewalign.utils.console import echo_first
    from viewalign.utils.settings import checked

    found = convert_layout(layout, source, out, checked(ConvertSettings, settings_of(context)))
    echo_first([f"left out: {line}" for line in found.left_out])
    name, kind, count = found.spec.name, found.spec.kind, len(found.cases)
    facts = {"folder": out, "name": name, "kind": kind, "cases": count, "left_out": found.left_out}
    return Result(facts, f"{name}: {kind}, {count} cases in {out}")
