"""`viewalign nnunet`: what nnU-Net's own commands need to know of viewalign."""

from __future__ import annotations

import typer

nnunet = typer.Typer(no_args_is_help=True, help="For nnU-Net's own commands: where they find viewalign's trainer.")


@nnunet.callback()
def group() -> None:
    """For nnU-Net's own commands: where they find viewalign's trainer."""


@nnunet.command()
def env() -> None:
    """Print the variable by which nnU-Net's own commands find viewalign's trainer.

    Put it into effect in a shell with

      eval "$(viewalign nnunet env)"

    and nnUNetv2_train, nnUNetv2_predict and the like take `-tr ViewalignTrainer -p PLAN` with any plan that
    `viewalign finetune segmentation` made.
    """
    from viewalign.finetuning.segmentation.environment import as_shell, check_installed, variables

    check_installed()
    typer.echo(as_shell(variables(None)))
