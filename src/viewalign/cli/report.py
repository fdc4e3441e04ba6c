"""`viewalign report`: write the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The page to write; default: report.html in the run.", show_default=False),
    ] = None,
) -> None:
    """Write a page about the health and results of a run.

    The run may be in progress or interrupted. The page shows

    \b
    verdict          one sentence on the figures below
    health           feature spread, effective rank, agreement of the views, time waiting for data; with limits
    loss curves      each term, in training and on held-out subjects
    pictures         two views and their overlap, a reconstruction, features as colours
    probe            results of a linear probe, if there is one
    settings         all settings of the run

    For a fine-tuned classification or regression it shows metrics with intervals, each fold, ROC curve and calibration
    or predicted against true values, and the worst cases.

    The file is self-contained: it loads nothing from the network.
    """
    import viewalign

    typer.echo(viewalign.report(run, out))
