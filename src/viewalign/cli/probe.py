"""`viewalign probe`: evaluate frozen features on a labelled task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.finetune import Task
from viewalign.cli.grammar import Result, settings_of


def probe(
    context: typer.Context,
    task: Task,
    encoders: Annotated[
        list[str], typer.Argument(metavar="ENCODER...", help="Runs, exports or checkpoints.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.")] = Path("probe.json"),
) -> Result:
    """Evaluate frozen features with a linear probe or k-NN: no training, minutes on a laptop.

    The same networks without training and simple intensity statistics are evaluated on the same cases. If the manifest
    has test cases, the probe is fitted on the training cases and evaluated on the test cases; otherwise by
    cross-validation.

    [b]Example[/b]

    viewalign probe task run other-run -o probe.json names=cva,mae shots=5,10,20
    """
    import viewalign
    from viewalign.utils.console import code_of_excluded

    results = viewalign.probe(task, encoders, out, **settings_of(context))
    excluded = results["excluded"]
    return Result({"out": out, **results, "excluded": dict(excluded)}, code=code_of_excluded(excluded))
