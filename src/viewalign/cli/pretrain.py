"""`viewalign pretrain`: a recipe and overrides to a run."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `viewalign recipes`) or a YAML file.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="data=STORE and out=RUN at least, then any dotted key."),
    ] = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on from the newest checkpoint in out=; no: refuse a folder that holds a run.")
    ] = "no",
) -> None:
    """Pretrain an encoder without labels.

    Every setting of a recipe can be given as key=value; a wrong key is answered with the nearest right one, and a key
    that the recipe's method does not read with the methods that do.
    Ctrl-C and SIGTERM finish the step, save everything, and say how to go on.

    A first look, on any laptop:
      viewalign pretrain cva-resenc-xs data=store out=run

    The published network and views, started anew or continued where it stopped:
      viewalign pretrain cva-resenc-l data=store out=run --resume auto

    With settings of your own:
      viewalign pretrain cva-primus-m data=store out=run batch=8 optim.lr=2e-4

    With frozen features judged on a small labelled task along the way (see `viewalign probe`):
      viewalign pretrain cva-resenc-l data=store out=run validate.probe.task=TASK validate.probe.every=2500
    """
    from viewalign.errors import UserError
    from viewalign.recipes.loading import load
    from viewalign.training.run import pretrain as run_recipe

    if resume not in {"auto", "no"}:
        raise UserError(f"--resume takes auto or no, not '{resume}'.")
    asked = load(recipe, settings or [], say=partial(typer.echo, err=True))
    probe = None
    if asked.validate_.probe is not None:
        from viewalign.evaluation.online_probe import make_probe

        probe = make_probe(asked)
    outcome = run_recipe(asked, resume="auto" if resume == "auto" else False, probe=probe)
    folder = outcome.folder.root
    if not outcome.first:
        raise typer.Exit(outcome.exit_code)
    if outcome.finished:
        typer.echo(f"Done: {outcome.step} steps. See it with  viewalign report {folder}  and take the encoder with")
        typer.echo(f"  viewalign export {folder}")
        return
    typer.echo(f"Stopped and saved at step {outcome.step} of {outcome.steps}. Go on with")
    typer.echo(f"  viewalign pretrain {folder / 'config.yaml'} --resume auto")
    raise typer.Exit(outcome.exit_code)
