"""`viewalign predict`: a fine-tuned model on new cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    model: Annotated[
        Path, typer.Argument(help="A fine-tuning's folder, one of its folds, or its .onnx.", show_default=False)
    ],
    cases: Annotated[
        Path, typer.Argument(help="A manifest (CSV or JSON lines); targets are not needed.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The CSV to write.")] = Path("predictions.csv"),
    flips: Annotated[bool, typer.Option("--flips", help="Average over the eight mirrorings.")] = False,
) -> None:
    """Predict probabilities, or values in the target's own unit, averaged over folds.

    Exit code: 0 all cases, 3 some could not be used.
    """
    from viewalign.cli.progress import progress_bar
    from viewalign.cli.telling import tell_refused
    from viewalign.errors import UserError
    from viewalign.transfer.tasks.finetune import write_predictions
    from viewalign.transfer.tasks.manifest import read_manifest
    from viewalign.transfer.tasks.models import Predictor
    from viewalign.transfer.tasks.onnx_export import OnnxPredictor

    predictor = OnnxPredictor(model) if model.suffix == ".onnx" else Predictor(model)
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
    tell_refused(refused)
