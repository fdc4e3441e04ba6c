"""`viewalign finetune` and `predict`: fine-tune an encoder on labelled data, and apply the result to new cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from viewalign.cli.grammar import Command, Result, settings_of
from viewalign.utils.console import code_of_excluded, stages
from viewalign.utils.text import counted

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
) -> Result:
    """Fine-tune for segmentation with stock nnU-Net: plan, preprocess, train, validate, predict, evaluate.

    Errors of the input are reported before training. The same command resumes an interrupted fine-tuning. nnU-Net's
    folders are those of nnUNet_raw, nnUNet_preprocessed and nnUNet_results if these are set, otherwise folders in OUT.
    commands.sh in OUT contains the equivalent nnU-Net commands.

    [b]Examples[/b]

    viewalign finetune segmentation 2 run -o heart

    viewalign finetune segmentation 2 run -o heart-scratch from_scratch=true

    viewalign finetune segmentation Dataset002_Heart hf:OWNER/NAME -o few shots=5,10 seeds=3

    viewalign finetune segmentation 2 run -o cv folds=5 predict=imagesTs postprocess=true

    [b]Contents of OUT[/b]: report.html, results.json, evaluation/ (a table of cases for each split), predictions/,
    finetune.yaml (all settings), nnunet.log, commands.sh.
    """
    import viewalign

    run = viewalign.finetune("segmentation", dataset, encoder, out, **settings_of(context))
    page = run.out / "report.html"
    results = json.loads((run.out / "results.json").read_text(encoding="utf-8"))
    return Result({"folder": run.out, "report": page, **results}, f"Report: {page}")


def classification(context: typer.Context, task: Task, encoder: Encoder, out: Out) -> Result:
    """Fine-tune for classification with cross-validation, evaluated over all held-out cases.

    [b]Example[/b]

    viewalign finetune classification task run -o tuned mode=head_first epochs=50
    """
    return _finetune(context, "classification", task, encoder, out)


def regression(context: typer.Context, task: Task, encoder: Encoder, out: Out) -> Result:
    """Fine-tune for regression with cross-validation, evaluated over all held-out cases.

    [b]Example[/b]

    viewalign finetune regression task run -o tuned recipe=fomo-brain-age
    """
    return _finetune(context, "regression", task, encoder, out)


def _finetune(
    context: typer.Context, kind: Literal["classification", "regression"], task: Path, encoder: str, out: Path
) -> Result:
    import viewalign

    done = viewalign.finetune(kind, task, encoder, out, **settings_of(context))
    facts = {
        "folder": out,
        "report": done.report,
        "metrics": done.score.values,
        "intervals": done.score.intervals,
        "excluded": dict(done.excluded),
    }
    text = f"Predictions, metrics and models: {out}\nReport: {done.report}"
    return Result(facts, text, code_of_excluded(done.excluded))


finetune = typer.Typer(no_args_is_help=True, help="Fine-tune a pretrained encoder on labelled data.")
for command in (segmentation, classification, regression):
    finetune.command(cls=Command)(command)


@finetune.callback()
def group() -> None:
    """Fine-tune a pretrained encoder on labelled data."""


def predict(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            help="A fine-tuning's folder (or one of its folds, or its .onnx), or a model folder of nnU-Net.",
            show_default=False,
        ),
    ],
    cases: Annotated[
        Path,
        typer.Argument(
            help="A manifest (CSV or JSON lines); for a segmentation also a folder of CASE_0000.nii.gz.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The CSV file, or the folder of masks.", show_default="predictions[.csv]"),
    ] = None,
) -> Result:
    """Predict probabilities, values in the target's unit, or masks on the grid of each image, averaged over folds.

    The kind of prediction is detected from the model's folder. Targets are not needed. The mask of a segmentation has
    the grid of the case's first channel.

    Exit code: 0 all cases were predicted, 3 some were excluded.

    [b]Examples[/b]

    viewalign predict tuned new.csv -o predictions.csv

    viewalign predict heart imagesTs -o masks tta=true
    """
    import viewalign
    from viewalign.finetuning.segmentation.predict import is_segmentation

    target = out or Path("predictions" if is_segmentation(model) else "predictions.csv")
    with stages() as report:
        found = viewalign.predict(model, cases, target, on_progress=report, **settings_of(context))
    facts = {
        "out": target,
        "columns": found.columns,
        "values": found.values,
        "masks": found.masks,
        "excluded": dict(found.excluded),
    }
    text = f"{counted(len(found.values) + len(found.masks), 'case')}: {target}"
    return Result(facts, text, code_of_excluded(found.excluded))
