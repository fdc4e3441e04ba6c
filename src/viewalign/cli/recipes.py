"""`viewalign recipes`: which recipes there are."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe with every setting that it reads.")] = None,
) -> None:
    """List the recipes with a line each, or print one in full.

    Save one to a file, change it, and give the file's name to `viewalign pretrain`:

      viewalign recipes cva-resenc-l > mine.yaml
    """
    from viewalign.recipes import loading

    if name is not None:
        typer.echo(loading.to_yaml(loading.load(name)), nl=False)
        return
    for one in loading.names():
        typer.echo(f"{one:22s} {loading.headline(one)}")


def methods() -> None:
    """List the pretraining methods: title, paper, networks, recipes, settings that only some methods read, and
    what each has been through.

    Take one by the name of a recipe, and see all settings of it:

      viewalign pretrain voco-resenc-xs data=store out=run

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
        typer.echo(f"    reads     {', '.join(summary(used_settings_of(name))) or 'what every method reads'}")
        typer.echo(f"    status    {entry.status}")
