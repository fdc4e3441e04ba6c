"""`viewalign report`: write the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Result


def report(
    run: Annotated[
        list[Path],
        typer.Argument(
            help="The folder of a pretraining, fine-tuning, study or gain, or several pretrainings.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="The page; default: report.html in the run, or runs.html.", show_default=False
        ),
    ] = None,
) -> Result:
    """Write a page about the health and results of a run, or about several runs.

    `viewalign pretrain` and `finetune` write it themselves: at the start, during the run and at the end. The run may be
    in progress or interrupted. The page of a pretraining has

    \b
    verdict       one sentence on the figures below
    health        feature spread, rank, agreement of views; with limits
    loss curves   each term, in training and on held-out subjects
    pictures      views and their overlap, reconstruction, features
    probe         results of a linear probe, if there is one
    settings      all settings of the run

    A fine-tuning has scores with intervals, baselines, curves and the worst cases; a study or a gain has its tables.
    Several pretrainings are overlaid in each chart, with the settings in which they differ.

    The file is self-contained: it loads nothing from the network.

    [b]Examples[/b]

    viewalign report run

    viewalign report run other-run -o runs.html
    """
    import viewalign

    page = viewalign.report(run, out)
    return Result({"report": page}, str(page))
