"""`viewalign report`: write the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Result


def report(
    run: Annotated[list[Path], typer.Argument(help="The run's folder, or several.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="The page; default: report.html in the run, or runs.html.", show_default=False
        ),
    ] = None,
) -> Result:
    """Write a page about the health and results of a run, or about several runs.

    `viewalign pretrain` and `finetune` write it themselves, at the start, from time to time, and at the end. The run
    may be in progress or interrupted. The page shows

    \b
    verdict          one sentence on the figures below
    health           feature spread, effective rank, agreement of the views, time waiting for data; with limits
    loss curves      each term, in training and on held-out subjects
    pictures         two views and their overlap, a reconstruction, features as colours
    probe            results of a linear probe, if there is one
    settings         all settings of the run

    For a fine-tuned classification or regression it shows metrics with intervals, each fold, ROC curve and calibration
    or predicted against true values, and the worst cases.

    For a fine-tuned segmentation it shows training curves, scores of all cases and pictures; for a study or a gain its
    tables. Several pretrainings are overlaid in each chart, with the settings in which they differ.

    The file is self-contained: it loads nothing from the network.

    [b]Examples[/b]

    viewalign report run

    viewalign report run other-run -o runs.html
    """
    import viewalign

    page = viewalign.report(run, out)
    return Result({"report": page}, str(page))
