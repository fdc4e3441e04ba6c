"""`viewalign task`, `fomo` and `nnunet`: layouts and commands of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Command, Result, settings_of
from viewalign.utils.text import counted

task = typer.Typer(no_args_is_help=True, help="Tasks for classification and regression: convert other layouts.")


@task.callback()
def task_group() -> None:
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
    return Result(facts, f"{name}: {kind}, {counted(count, 'case')} in {out}")


fomo = typer.Typer(no_args_is_help=True, help="FOMO25 and FOMO26: convert their tasks, build and check a submission.")


@fomo.command(cls=Command)
def prepare(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="The folder with preprocessed/ and labels/, or with Task_N/.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The task's or dataset's folder.", show_default=False)],
) -> Result:
    """Convert a task of the challenge; then fine-tune with the recipe of that task.

    Folders of both years are read. Tasks 2 and 4 are segmentations: they become datasets of nnU-Net, with every image
    in LPS, for `viewalign finetune segmentation`.

    [b]Example[/b]

    viewalign fomo prepare Task_1 -o task task=1
    """
    from viewalign.compat.fomo import FomoSettings, convert_task
    from viewalign.utils.settings import checked

    cases, left_out = convert_task(source, out, checked(FomoSettings, settings_of(context)).task)
    for line in left_out:
        typer.echo(f"  excluded: {line}", err=True)
    return Result({"folder": out, "cases": cases, "excluded": left_out}, f"{counted(cases, 'case')} in {out}")


@fomo.command(cls=Command)
def submission(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A fine-tuning's folder; an encoder for tasks 6 and 7.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.", show_default=False)],
) -> Result:
    """Write predict.py, the models, and definitions for Apptainer and Docker; they need no network.

    The settings are those of an encoder's embeddings (tasks 6 and 7); a fine-tuning has its own.

    [b]Examples[/b]

    viewalign fomo submission tuned -o submission

    viewalign fomo submission run -o embedding patch_size=[160,192,160]
    """
    from viewalign.compat.fomo_submission import write_submission
    from viewalign.evaluation.settings import FeatureSettings
    from viewalign.utils.settings import checked

    wanted = checked(FeatureSettings, settings_of(context))
    files = sorted(write_submission(model, out, wanted.patch_size, wanted.spacing, wanted.pool).iterdir())
    return Result({"folder": out, "files": files}, "\n".join(f"  {file}" for file in files))


@fomo.command(cls=Command)
def check(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A folder of fomo submission.", show_default=False)],
) -> Result:
    """Run a submission's predict.py on made-up images as FOMO26 does, and check what it writes.

    Checked are exit code, format, finite values and ranges as by the organisers' validator; and grid and affine of
    masks, use of the network, and (on a GPU) 120 s for each case, which the validator does not check. The container
    itself is not built. Exit code: 0 passed, 1 not.

    [b]Example[/b]

    viewalign fomo check submission task=1
    """
    from viewalign.compat.fomo_check import CheckSettings, check_submission
    from viewalign.utils.settings import checked

    wanted = checked(CheckSettings, settings_of(context))
    found = check_submission(folder, wanted.task)
    facts = {"passed": all(not case.problems for case in found), "cases": [vars(case) for case in found]}
    return Result(facts, "\n".join(case.text() for case in found), 0 if facts["passed"] else 1)


nnunet = typer.Typer(no_args_is_help=True, help="Use viewalign's trainer with nnU-Net's own commands.")


@nnunet.callback()
def nnunet_group() -> None:
    """Use viewalign's trainer with nnU-Net's own commands."""


@nnunet.command(cls=Command)
def env() -> Result:
    """Print the environment variable with which nnU-Net's own commands find viewalign's trainer.

    Set it in a shell with

      eval "$(viewalign nnunet env)"

    Then nnUNetv2_train, nnUNetv2_predict and similar commands accept `-tr ViewalignTrainer -p PLAN` with any plan
    created by `viewalign finetune segmentation`.
    """
    from viewalign.finetuning.segmentation.environment import as_shell, check_installed, variables

    check_installed()
    found = variables(None)
    return Result(found, as_shell(found))
