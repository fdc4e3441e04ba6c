"""`viewalign recipes`, `methods` and `settings`: lists of recipes, methods and settings."""

from __future__ import annotations

from typing import Annotated

import typer

from viewalign.cli.grammar import MODELS, model_of
from viewalign.errors import UserError


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe with every setting that it uses.")] = None,
) -> None:
    """List the recipes, or print one of them in full, with the meaning of each setting.

    Save a recipe to a file, edit it, and pass the file to `viewalign pretrain`:

      viewalign recipes cva-resenc-l > mine.yaml
    """
    import viewalign
    from viewalign.recipes import loading

    if name is not None:
        typer.echo(loading.to_yaml(loading.load(name), comments=True), nl=False)
        return
    for recipe, line in viewalign.list_recipes().items():
        typer.echo(f"{recipe:22s} {line}")


def methods() -> None:
    """List the pretraining methods: title, paper, networks, recipes, settings that only some methods use, status.

    To use a method, choose one of its recipes; `viewalign recipes` shows all settings:

      viewalign pretrain voco-resenc-xs store -o run

      viewalign recipes voco-resenc-l
    """
    from viewalign.methods.registry import METHODS, used_settings_of
    from viewalign.methods.requirements import summary
    from viewalign.recipes import loading

    recipes: dict[str, list[str]] = {name: [] for name in METHODS}
    for recipe in loading.names():
        recipes[loading.load(recipe).method].append(recipe)
    for name, entry in METHODS.items():
        typer.echo(f"{name}: {entry.title} ({entry.paper})")
        typer.echo(f"    networks  {', '.join(entry.networks)}")
        typer.echo(f"    recipes   {', '.join(recipes[name])}")
        typer.echo(f"    uses      {', '.join(summary(used_settings_of(name))) or 'only common settings'}")
        typer.echo(f"    status    {entry.status}")


def settings(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Such as prepare, or finetune segmentation.")
    ] = None,
) -> None:
    """Print the settings of a command as YAML with default, values and meaning; without COMMAND, list the commands.

    Save them to a file, edit it, and pass it to the command as config=FILE; the command line overrides the file:

      viewalign settings prepare > ct.yaml

      viewalign prepare scans -o store config=ct.yaml workers=8
    """
    from viewalign.utils.settings import describe

    name = " ".join(command or [])
    model = model_of(name)
    if model is None:
        if name:
            raise UserError(f"There is no command '{name}' with settings; use one of {', '.join(sorted(MODELS))}.")
        typer.echo("\n".join(sorted(MODELS)))
        return
    group = ""
    for one in describe(model):
        if one.group != group:
            group = one.group
            typer.echo(f"\n## {group}")
        typer.echo(f"# {one.meaning} [{one.values}]")
        unset = one.absent or not one.default
        typer.echo(f"{'# ' if unset else ''}{one.name}: {one.default or 'REQUIRED'}")
