"""`viewalign study`: arms × seeds × judges as one grid that can be stopped and continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from viewalign.study.grid import Grid
    from viewalign.study.settings import Study


def study(
    file: Annotated[str | None, typer.Argument(metavar="STUDY", help="A shipped study's name, or a YAML file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any dotted key, such as seeds=8 steps=100.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The study's folder; default its name.")] = None,
    data: Annotated[Path | None, typer.Option(help="Where the study's data lie (data.root).")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no further cell after so long.")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="A pattern of cells' names, such as 'judge/seg10/*'; what they need is done too."),
    ] = None,
    job: Annotated[
        str | None, typer.Option(metavar="I/N", help="Do one of N shares, for N processes that share the folder.")
    ] = None,
    slurm: Annotated[
        Path | None, typer.Option(help="Write a SLURM array script to this file, and run nothing.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and what is done; train nothing.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the studies that come with the package.")] = False,
) -> None:
    """Pretrain several arms with several seeds, judge all of them alike, and compare them in one table.

    Arms are recipes with settings; judges are probes of frozen features, the retrieval of places, and fine-tunings.
    What is done stays: call it again after a stop or a change, and only what depends on the change is done anew.
    Several processes may share a folder. Exit code 0: all done; 3: some cells failed; 4: some are left, for the
    minutes were over or another process is at them.

    [b]Examples[/b]

    viewalign study geometry-laptop --data hippocampus -o geometry --minutes 60

    viewalign study ablation-resenc-one-gpu --data DATA -o ablation --slurm ablation.sh && sbatch ablation.sh
    """
    from viewalign.errors import UserError
    from viewalign.study import loading
    from viewalign.study.grid import Grid

    if listed:
        for name in loading.names():
            typer.echo(f"{name:24s} {loading.headline(name)}")
        return
    if file is None:
        raise UserError("Name a study: one of `viewalign study --list`, or a YAML file.")
    root = [] if data is None else [f"data.root={data.absolute()}"]
    chosen = loading.load(file, [*root, *(settings or [])])
    place = out or Path(chosen.name)
    if slurm is not None:
        named = str(Path(file).absolute()) if Path(file).is_file() else file
        write_slurm(chosen, place, slurm, [named, *root, *(settings or [])])
        return
    run_grid(Grid(chosen, place), minutes, dry_run, job, only)


def write_slurm(chosen: Study, out: Path, script: Path, arguments: list[str]) -> None:
    """Write a SLURM array script that runs a study in shares, with the folder for its logs."""
    import sys

    from viewalign.study.jobs import slurm_script

    logs = out.absolute() / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "viewalign", "study", *arguments, "-o", str(out.absolute())]
    script.write_text(slurm_script(chosen, command, str(logs / "%A_%a.log")))
    typer.echo(f"Start it by `sbatch {script}`. Its words go to {logs}, the table to {out}/table.md.")


def run_grid(grid: Grid, minutes: float | None, dry_run: bool, job: str | None = None, only: str | None = None) -> None:
    """Do what is to do of a study, or list it; write table and page, and end with the study's exit code."""
    import math
    import time

    from viewalign.locks import locked
    from viewalign.report.study import write_page
    from viewalign.study import jobs, table
    from viewalign.study.running import run_study

    cells = grid.cells if job is None else jobs.share(grid.study, grid.cells, job)
    cells = cells if only is None else jobs.only(cells, only)
    if dry_run:
        for cell in cells:
            typer.echo(f"{cell.record.get('status', 'to do'):7s} {cell.name}")
        return
    began = time.monotonic()
    code = run_study(grid, typer.echo, lambda: minutes is None or time.monotonic() - began < 60 * minutes, cells)
    with locked(grid.out / ".table.lock", math.inf):  # other jobs of the study write the same
        typer.echo(table.write(grid))
        typer.echo(f"Tables: {grid.out}/table.md, .csv, .json\nPage: {write_page(grid.out)}")
    if code:
        raise typer.Exit(code)
