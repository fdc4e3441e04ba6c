"""`viewalign predict`: a fine-tuned model on new cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.finetune import CaseWorkers


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
    device: Annotated[str, typer.Option(help="auto, cuda or cpu; an .onnx runs on the CPU.")] = "auto",
    workers: CaseWorkers = None,
) -> None:
    """Predict probabilities, values in the target's own unit, or masks on the voxels of each image; folds averaged.

    What the model answers is told by its folder. Targets are not needed. A segmentation's mask has the grid of the
    first channel given for its case.

    Exit code: 0 all cases, 3 some could not be used.

    [b]Examples[/b]

    viewalign predict tuned new.csv -o predictions.csv

    viewalign predict liver imagesTs -o masks --flips
    """
    from viewalign import api
    from viewalign.finetuning.segmentation.predict import is_segmentation
    from viewalign.utils.console import progress_bar, tell_refused

    target = out or Path("predictions" if is_segmentation(model) else "predictions.csv")
    with progress_bar("Predicting") as report:
        found = api.predict(model, cases, target, flips=flips, device=device, on_progress=report, workers=workers)
    typer.echo(f"{len(found.values) + len(found.masks)} cases: {target}")
    tell_refused(found.excluded)
