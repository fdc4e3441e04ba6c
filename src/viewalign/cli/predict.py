"""`viewalign predict`: a fine-tuned model on new cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    model: Annotated[Path, typer.Argument(help="A fine-tuning's folder, or one of its folds.", show_default=False)],
    cases: Annotated[
        Path, typer.Argument(help="A manifest (CSV or JSON lines); targets are not needed.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The CSV to write.")] = Path("predictions.csv"),
    flips: Annotated[bool, typer.Option("--flips", help="Average over the eight mirrorings.")] = False,
) -> None:
    """Predict probabilities, or values in the target's own unit, averaged over folds.

    Exit code: 0 all cases, 3 some could not be used.
    """
    from viewalign import api
    from viewalign.cli.progress import progress_bar
    from viewalign.cli.telling import tell_refused

    with progress_bar("Predicting") as report:
        found = api.predict(model, cases, out, flips=flips, on_progress=report)
    typer.echo(f"{len(found.values)} cases: {out}")
    tell_refused(found.refused)
