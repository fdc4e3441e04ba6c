"""`viewalign nnunet`: the environment of nnU-Net's own commands."""

from __future__ import annotations

import typer

from viewalign.cli.grammar import Command, Result

nnunet = typer.Typer(no_args_is_help=True, help="Use viewalign's trainer with nnU-Net's own commands.")


@nnunet.callback()
def group() -> None:
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
