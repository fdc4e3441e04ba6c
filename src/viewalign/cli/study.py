"""`viewalign study`, `gain` and `compare-methods`: a resumable grid of arms × seeds × evaluations."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.grammar import Result, settings_of
from viewalign.errors import StoppedError, UserError

if TYPE_CHECKING:
    from viewalign.api.studies import StudyPlan

Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="The study's folder; default: its name.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the cells and their state; train nothing.")]
Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="PATTERN",
        help="Run only these cells, such as 'evaluate/seg10/*', and the cells they depend on.",
        show_default=False,
    ),
]


def study(
    context: typer.Context,
    file: Annotated[
        str | None,
        typer.Argument(metavar="STUDY", help="Name of a study of the package, or a YAML file.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Argument(help="The folder of the study's data (data.root).", show_default=False)
    ] = None,
    out: Out = None,
    only: Only = None,
    slurm: Annotated[
        Path | None,
        typer.Option(
            "--slurm", metavar="FILE", help="Write a SLURM array script (of --only); run nothing.", show_default=False
        ),
    ] = None,
    dry_run: DryRun = False,
    listed: Annotated[bool, typer.Option("--list", help="List the package's studies.")] = False,
) -> Result:
    """Pretrain several arms with several seeds, evaluate all in the same way, and compare them in one table.

    An arm is a recipe with settings; arms are evaluated by probes of frozen features, by retrieval and by fine-tuning.
    Finished cells are kept: after an interruption or a change, only unfinished or changed cells are run.
    Several processes may share a folder. Exit code 0: complete; 3: some cells failed; 4: some are left, because the
    time limit was reached or another process runs them.

    [b]Examples[/b]

    viewalign study geometry-laptop hippocampus -o geometry minutes=60

    viewalign study ablation-resenc-one-gpu DATA -o ablation --slurm ablation.sh && sbatch ablation.sh
    """
    import viewalign
    from viewalign.recipes.files import STUDIES

    if listed:
        studies = {name: STUDIES.headline(name) for name in STUDIES.names()}
        return Result(studies, "\n".join(f"{name:24s} {line}" for name, line in studies.items()))
    if file is None:
        raise UserError("Set a study: one of `viewalign study --list`, or a YAML file.")
    settings = settings_of(context)
    settings |= {f"data.{name}": value for name, value in settings.pop("data", {}).items()}  # `data` is the folder
    plan = viewalign.study(file, data, out, **settings)
    if slurm is not None:
        if dry_run:
            raise UserError("--slurm writes a script and --dry-run writes nothing; set one of them.")
        logs = plan.write_slurm(slurm, only)
        start = shlex.join(["sbatch", str(slurm)])
        text = f"Start it by `{start}`. Its output goes to {logs}, the table to {plan.folder}/table.md."
        return Result({"script": slurm, "logs": logs, "folder": plan.folder}, text)
    return _run(plan, only, dry_run)


def gain(
    context: typer.Context,
    store: Annotated[Path, typer.Argument(help="Prepared images to pretrain on.", show_default=False)],
    labelled: Annotated[
        str,
        typer.Option(
            "--labelled",
            metavar="DATA",
            help="Labelled data: a dataset in nnU-Net's layout (folder, name or number), or the folder of a task.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder of all results.")] = Path("gain"),
    dry_run: DryRun = False,
) -> Result:
    """Measure what pretraining gains over training from scratch, with few and with all labels.

    Pretrains on STORE (or takes a finished run, encoder=RUN), fine-tunes the encoder, the untrained network and, if
    public=NAME is set, a public encoder under one plan, evaluates frozen features too, and writes one page whose first
    sentence is the result, with 95 % intervals over fine-tunings and test cases, and the time it took.

    The expected time is printed before the start. The defaults suit a laptop: a small network and short trainings. For
    your own comparison set recipe, steps and finetune.epochs, or encoder=RUN. With rates=…, each encoder, and training
    from scratch, has the learning rate that was best on held-out training cases, as a published gain should. The same
    command resumes. Exit codes are those of `viewalign study`.

    [b]Examples[/b]

    viewalign gain store --labelled Dataset004_Hippocampus -o gain

    viewalign gain store --labelled tasks/age -o gain encoder=run shots=10,50 seeds=5

    viewalign gain store --labelled 2 -o gain rates=1e-3,3e-3,1e-2

    viewalign gain store --labelled 2 -o gain public=openmind-mae-resenc-l finetune.epochs=100 finetune.iterations=250
    """
    import viewalign
    from viewalign.utils.console import duration

    plan = viewalign.gain(store, labelled, out, **settings_of(context))
    typer.echo(f"Expected: about {duration(plan.estimate())} on this machine, within a factor of two. Folder: {out}")
    return _run(plan, None, dry_run)


def compare_methods(
    context: typer.Context,
    store: Annotated[Path, typer.Argument(help="Prepared images to pretrain on.", show_default=False)],
    images: Annotated[Path, typer.Argument(help="Folder of images with labels, to evaluate on.", show_default=False)],
    labels: Annotated[Path, typer.Argument(help="Folder of their label maps, of the same names.", show_default=False)],
    out: Out = None,
    only: Only = None,
    dry_run: DryRun = False,
) -> Result:
    """Pretrain with several methods and equal settings, and evaluate them frozen and fine-tuned in one table.

    Frozen features are evaluated by a voxel probe and by retrieval; then nnU-Net fine-tunes each encoder, and the
    untrained network from scratch, on a few cases for 20 epochs of 25 steps.

    This is a study (see `viewalign study --help`) with the same table, page and exit codes, and is resumed by the same
    command. Patterns are of case names, such as 'case_0*,case_12'.

    [b]Example[/b]

    viewalign compare-methods store images labels -o methods learn='case_0*' test='case_1*' common.batch=8
    """
    import viewalign

    return _run(viewalign.compare_methods(store, images, labels, out, **settings_of(context)), only, dry_run)


def _run(plan: StudyPlan, only: str | None, dry_run: bool) -> Result:
    try:
        code = 0 if dry_run else plan.run(only)
    except StoppedError as stop:
        code = stop.code
        typer.echo("Stopped and saved. The same command resumes it.", err=True)
    cells = plan.cells(only)
    text = "\n".join(f"{status:7s} {name}" for name, status in cells.items()) if dry_run else ""
    return Result({"folder": plan.folder, "cells": cells}, text, code)
