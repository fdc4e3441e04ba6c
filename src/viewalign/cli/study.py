"""`viewalign study`: arms × seeds × judges as one grid that can be stopped and continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from viewalign.study.running import Grid


def study(
    file: Annotated[str | None, typer.Argument(metavar="STUDY", help="A shipped study's name, or a YAML file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any dotted key, such as seeds=8 steps=100.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The study's folder; default its name.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where the study's data lie (data.root).")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no further cell after so long.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and what is done; train nothing.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the studies that come with the package.")] = False,
) -> None:
    """Pretrain several arms with several seeds, judge all of them alike, and compare them in one table.

    Arms are recipes with settings; judges are a voxel probe of frozen features and the retrieval of places. What is
    done stays: call it again after a stop or a change, and only what depends on the change is done anew. Exit code 0:
    all done; 3: some cells failed; 4: the minutes were over.

    [b]Example[/b]

    viewalign study geometry-laptop --data hippocampus -o geometry --minutes 60
    """
    from viewalign.errors import UserError
    from viewalign.study import loading
    from viewalign.study.running import Grid

    if listed:
        for name in loading.names():
            typer.echo(f"{name:22s} {loading.headline(name)}")
        return
    if file is None:
        raise UserError("Name a study: one of `viewalign study --list`, or a YAML file.")
    root = [] if data is None else [f"data.root={data.absolute()}"]
    chosen = loading.load(file, [*root, *(settings or [])])
    run_grid(Grid(chosen, out or Path(chosen.name)), minutes, dry_run)


def run_grid(grid: Grid, minutes: float | None, dry_run: bool) -> None:
    """Do what is to do of a study, or list it; write table and page, and end with the study's exit code."""
    import time

    from viewalign.report.study import write_page
    from viewalign.study import table
    from viewalign.study.running import run_study

    if dry_run:
        for cell in grid.cells:
            typer.echo(f"{cell.record.get('status', 'to do'):7s} {cell.name}")
        return
    began = time.monotonic()
    code = run_study(grid, typer.echo, lambda: minutes is None or time.monotonic() - began < 60 * minutes)
    typer.echo(table.write(grid))
    typer.echo(f"Tables: {grid.out}/table.md, .csv, .json\nPage: {write_page(grid.out)}")
    if code:
        raise typer.Exit(code)
