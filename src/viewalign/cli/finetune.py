"""`viewalign finetune`: fine-tune an encoder on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from viewalign.cli.grammar import Command, settings_of

Task = Annotated[Path, typer.Argument(help="A task: the folder of task.yaml and its manifest.", show_default=False)]
Encoder = Annotated[
    str,
    typer.Argument(
        help="A run, an export, a checkpoint of nnssl or nnU-Net, hf:OWNER/NAME, a name of `viewalign encoders`, or "
        "untrained:NAME.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option("-o", "--out", help="The fine-tuning's folder; an unfinished one is resumed.", show_default=False),
]


def segmentation(
    context: typer.Context,
    dataset: Annotated[
        str,
        typer.Argument(
            help="nnU-Net's number or name of a dataset, or a folder in its layout (dataset.json, imagesTr, labelsTr).",
            show_default=False,
        ),
    ],
    encoder: Encoder,
    out: Out,
) -> None:
    """Fine-tune for segmentation with stock nnU-Net: plan, preprocess, train, validate, predict, evaluate.

    Errors of the input are reported before training. The same command resumes an interrupted fine-tuning. nnU-Net's
    folders are those of nnUNet_raw, nnUNet_preprocessed and nnUNet_results if these are set, otherwise folders in OUT.
    commands.sh in OUT contains the equivalent nnU-Net commands.

    [b]Examples[/b]

    viewalign finetune segmentation 4 run -o liver

    viewalign finetune segmentation 4 run -o liver-scratch from_scratch=true

    viewalign finetune segmentation Dataset004_Liver hf:OWNER/NAME -o few shots=5,10 seeds=3

    viewalign finetune segmentation 4 run -o cv folds=5 predict=imagesTs postprocess=true

    [b]Contents of OUT[/b]: report.html, results.json, evaluation/ (a table of cases for each split), predictions/,
    finetune.yaml (all settings), nnunet.log, commands.sh.
    """
    import viewalign

    run = viewalign.finetune("segmentation", dataset, encoder, out, **settings_of(context))
    typer.echo(f"Report: {run.out / 'report.html'}")


def classification(context: typer.Context, task: Task, encoder: Encoder, out: Out) -> None:
    """Fine-tune for classification with cross-validation, evaluated over all held-out cases.

    [b]Example[/b]

    viewalign finetune classification task run -o tuned mode=head_first epochs=50
    """
    _finetune(context, "classification", task, encoder, out)


def regression(context: typer.Context, task: Task, encoder: Encoder, out: Out) -> None:
    """Fine-tune for regression with cross-validation, evaluated over all held-out cases.

    [b]Example[/b]

    viewalign finetune regression task run -o tuned recipe=fomo-brain-age
    """
    _finetune(context, "regression", task, encoder, out)


def _finetune(
    context: typer.Context, kind: Literal["classification", "regression"], task: Path, encoder: str, out: Path
) -> None:
    import viewalign
    from viewalign.utils.console import exit_if_excluded

    done = viewalign.finetune(kind, task, encoder, out, **settings_of(context))
    typer.echo(f"Predictions, metrics and models: {out}\nReport: {done.report}")
    exit_if_excluded(done.excluded)


finetune = typer.Typer(no_args_is_help=True, help="Fine-tune a pretrained encoder on labelled data.")
for command in (segmentation, classification, regression):
    finetune.command(cls=Command)(command)


@finetune.callback()
def group() -> None:
    """Fine-tune a pretrained encoder on labelled data."""
