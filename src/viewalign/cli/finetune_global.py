"""`viewalign finetune classification` and `regression`: one answer a case."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from viewalign.cli.task_options import Cache, CaseWorkers

Task = Annotated[Path, typer.Argument(help="A task: the folder of task.yaml and its manifest.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as epochs=50.")]
Encoder = Annotated[
    str, typer.Option(help="A run, an export, an nnssl checkpoint, or untrained:NAME.", show_default=False)
]
Out = Annotated[Path, typer.Option("-o", "--out", help="The fine-tuning's folder; an unfinished one is completed.")]
RecipeName = Annotated[
    str | None, typer.Option(help="ssl3d-abide, fomo-infarct, fomo-brain-age, or a YAML file.", show_default=False)
]


def classification(
    task: Task,
    encoder: Encoder,
    out: Out,
    settings: Overrides = None,
    recipe: RecipeName = None,
    cache: Cache = None,
    workers: CaseWorkers = None,
) -> None:
    """Fine-tune an encoder to tell classes, in folds, and judge it once over all held-out cases.

    [b]Example[/b]

    viewalign finetune classification task mode=head_first epochs=50 --encoder run -o tuned
    """
    _finetune(task, settings, encoder, out, recipe, cache, workers, regression=False)


def regression(
    task: Task,
    encoder: Encoder,
    out: Out,
    settings: Overrides = None,
    recipe: RecipeName = None,
    cache: Cache = None,
    workers: CaseWorkers = None,
) -> None:
    """Fine-tune an encoder to tell a number, in folds, and judge it once over all held-out cases.

    [b]Example[/b]

    viewalign finetune regression task --encoder run -o tuned --recipe fomo-brain-age
    """
    _finetune(task, settings, encoder, out, recipe, cache, workers, regression=True)


def _finetune(
    task: Path,
    settings: list[str] | None,
    encoder: str,
    out: Path,
    recipe: str | None,
    cache: Path | None,
    workers: int | None,
    *,
    regression: bool,
) -> None:
    from viewalign import api
    from viewalign.cli.telling import tell_refused

    kind: Literal["classification", "regression"] = "regression" if regression else "classification"
    rest = {"recipe": recipe, "overrides": settings or [], "say": typer.echo, "cache": cache, "workers": workers}
    done = api.finetune(kind, task, encoder, out, **rest)
    typer.echo(f"Predictions, figures and models: {out}\nReport: {done.report}")
    tell_refused(done.refused)
