"""`viewalign pretrain`: pretrain an encoder from a recipe and a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.grammar import Result, command, settings_of
from viewalign.errors import StoppedError
from viewalign.utils.text import counted


def pretrain(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `viewalign recipes`) or a YAML file.")],
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="STORE", help="A store of `viewalign prepare`; may be set in the YAML file.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="RUN", help="The run's folder.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest checkpoint in RUN, or start if there is none.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check what a start checks; estimate memory and time; write nothing.")
    ] = False,
) -> Result:
    """Pretrain an encoder without labels.

    Every setting of a recipe can be set as key=value. Unknown keys are errors that suggest the closest match; so are
    keys that the recipe's method does not use.
    Ctrl-C and SIGTERM finish the step, save a checkpoint, and print how to resume.

    `viewalign recipes NAME` prints a recipe with all its settings; defaults shown here are those of an empty recipe.

    [b]Examples[/b]

    viewalign pretrain cva-resenc-xs store -o run         # a first test

    viewalign pretrain cva-resenc-l store -o run --resume # starts or resumes

    viewalign pretrain cva-primus-m store -o run batch=8 optim.lr=2e-4

    viewalign pretrain cva-resenc-l store -o run --dry-run

    viewalign pretrain mine.yaml store -o run validate.probe.task=task
    """
    import viewalign

    if dry_run:
        trial = viewalign.pretrain(recipe, data, out, resume=resume, dry_run=True, **settings_of(context))
        return Result(trial.as_json(), trial.text())
    try:
        run = viewalign.pretrain(recipe, data, out, resume=resume, **settings_of(context))
    except StoppedError as stop:
        run = stop.result
    folder = run.folder.root
    if not run.first:
        raise typer.Exit(run.exit_code)
    report, step, steps, finished = run.folder.report, run.step, run.steps, run.finished
    facts = {"folder": folder, "report": report, "step": step, "steps": steps, "finished": finished}
    if finished:
        return Result(facts, f"Done: {counted(step, 'step')}. Report: {report}\nNext:   {command('export', folder)}")
    resume_with = command("pretrain", (folder / "config.yaml").absolute(), "--resume")
    return Result(facts, f"Stopped and saved at step {step} of {steps}. Resume with\n  {resume_with}", run.exit_code)
