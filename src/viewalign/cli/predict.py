"""`viewalign predict`: apply a fine-tuned model to new cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Result, settings_of
from viewalign.utils.console import code_of_excluded, stages


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

    viewalign predict liver imagesTs -o masks tta=true
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
    text = f"{len(found.values) + len(found.masks)} cases: {target}"
    return Result(facts, text, code_of_excluded(found.excluded))
