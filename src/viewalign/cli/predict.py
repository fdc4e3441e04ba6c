"""`viewalign predict`: a fine-tuned model on new cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    model: Annotated[
        Path,
        typer.Argument(
            help="A fine-tuning's folder (or one of its folds, or its .onnx), or nnU-Net's folder of a model.",
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
        typer.Option("-o", "--out", help="The CSV, or the folder of masks.", show_default="predictions[.csv]"),
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Average over mirrored images too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu; an .onnx runs on the CPU.")] = "auto",
) -> None:
    """Predict probabilities, values in the target's own unit, or masks on the voxels of each image; folds averaged.

    What the model answers is told by its folder. Targets are not needed. A segmentation's mask has the grid of the
    first channel given for its case.

    Exit code: 0 all cases, 3 some could not be used.

    [b]Examples[/b]

    viewalign predict tuned new.csv -o predictions.csv

    viewalign predict liver imagesTs -o masks --flips
    """
    from viewalign.cli.telling import tell_refused
    from viewalign.transfer.segmentation.predicting import is_segmentation

    segments = is_segmentation(model)
    target = out or Path("predictions" if segments else "predictions.csv")
    tell_refused(
        _masks(model, cases, target, flips, device) if segments else _answers(model, cases, target, flips, device)
    )


def _masks(model: Path, cases: Path, out: Path, flips: bool, device: str) -> list[tuple[str, str]]:
    from viewalign.transfer.segmentation import predicting
    from viewalign.transfer.segmentation.running import Machine

    trained = predicting.read_trained(model)
    given = predicting.cases_in(cases, trained)
    refused = predicting.predict(trained, given, out, Machine.choose(device, 1, 1), flips)
    typer.echo(f"{len(given) - len(refused)} masks, {len(trained.folds)} folds averaged: {out}")
    return refused


def _answers(model: Path, cases: Path, out: Path, flips: bool, device: str) -> list[tuple[str, str]]:
    from viewalign.cli.progress import progress_bar
    from viewalign.errors import UserError
    from viewalign.transfer.segmentation.running import Machine
    from viewalign.transfer.tasks.finetune import write_predictions
    from viewalign.transfer.tasks.manifest import read_manifest
    from viewalign.transfer.tasks.models import Predictor
    from viewalign.transfer.tasks.onnx_export import OnnxPredictor

    machine = Machine.choose(device, 1, 1)
    predictor = OnnxPredictor(model) if model.suffix == ".onnx" else Predictor(model, machine.device)
    given = read_manifest(cases, predictor.spec, targets=False)
    rows, refused = {}, []
    with progress_bar("Predicting") as report:
        for number, case in enumerate(given, 1):
            try:
                rows[case.case] = ("", predictor.predict(case, flips))
            except UserError as problem:
                refused.append((case.case, str(problem)))
            report(number, len(given))
    write_predictions(out, given, rows, predictor.spec)
    typer.echo(f"{len(rows)} cases: {out}")
    return refused
