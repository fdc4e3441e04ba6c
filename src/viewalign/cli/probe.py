"""`viewalign probe`: what a simple learner can tell from an encoder's vectors, beside what it must beat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.finetune import Cache, CaseWorkers


def probe(
    encoders: Annotated[
        list[str],
        typer.Argument(
            metavar="ENCODER...", help="Runs, exports or checkpoints, each perhaps as NAME=PATH.", show_default=False
        ),
    ],
    task: Annotated[Path, typer.Option(help="A task: the folder of task.yaml and its manifest.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON to write.")] = Path("probe.json"),
    learners: Annotated[str, typer.Option(help="linear (logistic regression, ridge) and knn (cosine).")] = "linear,knn",
    folds: Annotated[
        int, typer.Option(min=2, help="Folds by subject, where the manifest names no test cases or folds.")
    ] = 5,
    shots: Annotated[
        str | None,
        typer.Option(help="A few-shot curve: cases of each class (or in all), as 5,10,20.", show_default=False),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Draws of each number of shots.")] = 10,
    size: Annotated[
        str | None,
        typer.Option(help="Field of view D,H,W in voxels; default the views of pretraining.", show_default=False),
    ] = None,
    spacing: Annotated[str, typer.Option(help="pretraining, none, or D,H,W in mm.")] = "pretraining",
    pool: Annotated[str, typer.Option(help="multistage, average, or pretrained.")] = "multistage",
    draws: Annotated[int, typer.Option(min=100, help="Resamplings of subjects for intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of folds, draws and the untrained network.")] = 0,
    cache: Cache = None,
    workers: CaseWorkers = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Judge encoders by a learner fitted to their vectors: no training, minutes on a laptop.

    The same network untrained, and plain intensity statistics, are judged on the same cases. Where the manifest marks
    test cases, training cases teach and test cases are judged; else all are judged in folds.

    [b]Example[/b]

    viewalign probe cva=run mae=other-run --task task --shots 5,10,20 -o probe.json
    """
    from viewalign.errors import UserError
    from viewalign.evaluation.probe import ProbePlan, run_probe
    from viewalign.utils.console import tell_refused

    chosen = tuple(part.strip() for part in learners.split(",") if part.strip())
    if not chosen or set(chosen) - {"linear", "knn"}:
        raise UserError(f"--learners takes linear and knn, not '{learners}'.")
    numbers = () if shots is None else tuple(int(part) for part in shots.split(",") if part.strip().isdigit())
    if shots is not None and not numbers:
        raise UserError(f"--shots {shots}: give numbers such as 5,10,20.")
    plan = ProbePlan(chosen, folds, numbers, repeats, size, spacing, pool, draws, seed, device, workers)  # type: ignore[arg-type]
    tell_refused(run_probe(encoders, task, out, plan, typer.echo, cache))
