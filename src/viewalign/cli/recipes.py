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
