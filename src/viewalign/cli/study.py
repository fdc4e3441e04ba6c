"""`viewalign study`: arms × seeds × judges as one grid that can be stopped and continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from viewalign.studies.cells import Grid
    from viewalign.studies.settings import Study


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
    from viewalign.studies import loading
    from viewalign.studies.cells import Grid

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

    from viewalign.studies.cells import slurm_script

    logs = out.absolute() / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "viewalign", "study", *arguments, "-o", str(out.absolute())]
    script.write_text(slurm_script(chosen, command, str(logs / "%A_%a.log")))
    typer.echo(f"Start it by `sbatch {script}`. Its words go to {logs}, the table to {out}/table.md.")


def run_grid(grid: Grid, minutes: float | None, dry_run: bool, job: str | None = None, only: str | None = None) -> None:
    """Do what is to do of a study, or list it; write table and page, and end with the study's exit code."""
    import math
    import time

    from viewalign.reports.study import write_page
    from viewalign.studies import cells as jobs
    from viewalign.studies import table
    from viewalign.studies.run import run_study
    from viewalign.utils.locks import locked

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


def compare_methods(
    store: Annotated[Path, typer.Option(help="Prepared images to pretrain on.", show_default=False)],
    images: Annotated[Path, typer.Option(help="Folder of images with labels, to judge on.", show_default=False)],
    labels: Annotated[Path, typer.Option(help="Folder of their label maps, of the same names.", show_default=False)],
    learn: Annotated[str, typer.Option(help="Cases a probe learns from: patterns, by commas.", show_default=False)],
    test: Annotated[str, typer.Option(help="Cases it is judged on: patterns, by commas.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of a recipe, for all methods that read them: batch=8."),
    ] = None,
    network: Annotated[str, typer.Option(help="The second half of recipe names.")] = "resenc-xs",
    methods: Annotated[str, typer.Option(help="By commas, such as mae,cva.", show_default="all there are")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Of every method.")] = 300,
    seeds: Annotated[int, typer.Option(min=1, help="How often each is pretrained.")] = 3,
    shots: Annotated[int, typer.Option(min=1, help="Labelled cases that the probe learns from.")] = 10,
    finetune_shots: Annotated[
        str | None,
        typer.Option(
            help="Labelled cases that nnU-Net fine-tunes on, such as 5,10; none leaves it out.",
            show_default="as --shots, where the extra nnunet is there",
        ),
    ] = None,
    finetune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Of a fine-tuning, such as epochs=50; may be given again.", show_default=False
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Of the CPU; 0 for torch's own choice.")] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Default methods-NETWORK.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing further after so long.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is to do; train nothing.")] = False,
) -> None:
    """Pretrain with several methods, everything else equal, and judge them frozen and fine-tuned in one table.

    Frozen features are judged by a voxel probe and by finding places again; then nnU-Net fine-tunes each encoder, and
    the untrained network from scratch, on a few cases for 20 epochs of 25 steps.

    It is a study (see `viewalign study --help`): it goes on where it was stopped, and has the same table, page and
    exit codes. Patterns are of case names, such as 'case_0*,case_12'.

    [b]Example[/b]

    viewalign compare-methods --store store --images images --labels labels --learn 'case_0*' --test 'case_1*'
    """
    from viewalign.studies.cells import Grid
    from viewalign.studies.loading import comparison, tuning_judges

    where = {"images": str(images.absolute()), "labels": str(labels.absolute())}
    split = {"learn": learn.split(","), "test": test.split(",")}
    data = {"store": str(store.absolute()), "labelled": {**where, **split}}
    tuned = tuning_judges(network, _numbers(finetune_shots, shots), finetune or [])
    chosen = comparison(
        network,
        data,
        [one.strip() for one in methods.split(",") if one.strip()],
        settings or [],
        steps=steps,
        seeds=seeds,
        threads=threads,
        judges={"voxels": {"kind": "voxel_probe", "shots": shots}, "places": {"kind": "retrieval"}, **tuned},
    )
    run_grid(Grid(chosen, out or Path(chosen.name)), minutes, dry_run)


def _numbers(asked: str | None, usual: int) -> tuple[int, ...]:
    """Read `5,10`; where nothing is asked for, as for the probe, if nnU-Net is there."""
    from viewalign.errors import UserError
    from viewalign.finetuning.segmentation import environment

    if asked is None:
        try:
            environment.check_installed()
        except UserError as lacking:
            typer.echo(f"Encoders are judged frozen alone. {lacking}", err=True)
            return ()
        return (usual,)
    words = [] if asked.strip() in {"none", "0"} else asked.split(",")
    if not all(word.strip().isdigit() and int(word) for word in words):
        raise UserError(f"--finetune-shots {asked}: give numbers such as 5,10, or none.")
    return tuple(int(word) for word in words)
