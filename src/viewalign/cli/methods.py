"""`viewalign methods`: which pretraining methods there are."""

from __future__ import annotations

import typer


def methods() -> None:
    """List the pretraining methods: title, paper, networks, recipes, settings that only some methods read, and
    what each has been through.

    Take one by the name of a recipe, and see all settings of it:

      viewalign pretrain voco-resenc-xs data=store out=run

      viewalign recipes voco-resenc-l
    """
    from viewalign.methods.reading import summary
    from viewalign.methods.registry import METHODS, reads_of
    from viewalign.recipes import loading

    recipes: dict[str, list[str]] = {name: [] for name in METHODS}
    for recipe in loading.names():
        recipes[loading.load(recipe).method].append(recipe)
    for name, entry in METHODS.items():
        typer.echo(f"{name}: {entry.title} ({entry.paper})")
        typer.echo(f"    networks  {', '.join(entry.networks)}")
        typer.echo(f"    recipes   {', '.join(recipes[name])}")
        typer.echo(f"    reads     {', '.join(summary(reads_of(name))) or 'what every method reads'}")
        typer.echo(f"    status    {entry.status}")
