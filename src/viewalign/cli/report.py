"""`viewalign report`: a run as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The page's file; default is report.html in the run.", show_default=False),
    ] = None,
) -> None:
    """Write a page that says whether a run is healthy.

    The run may still be in progress or have been interrupted. The page shows

    \b
    a verdict        in one sentence, from the figures below
    health           feature spread, effective rank, agreement of the views, time waiting for data; with limits
    loss curves      each term, in training and on held-out subjects
    pictures         two views and where they meet, a reconstruction, features as colours
    probe            results of a linear probe, where there was one
    settings         all of them

    For a fine-tuned classification or regression it shows figures with intervals, each fold, ROC curve and calibration
    or predicted against true values, and the worst cases.

    The file is self-contained: it loads nothing from the network, and can be mailed, printed and archived.
    """
    from viewalign.evaluation.predictions import is_task_run
    from viewalign.reports import task
    from viewalign.reports.run import write_report

    typer.echo(task.write_page(run, out) if is_task_run(run) else write_report(run, out))
