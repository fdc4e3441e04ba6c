"""How commands tell of cases that could not be used."""

from __future__ import annotations

from collections.abc import Sequence

import typer

_SHOWN = 20
EXIT_CODE = 3
"""Some cases were set aside, the rest went through."""


def tell_refused(refused: Sequence[tuple[str, str]]) -> None:
    """List the cases that could not be used, and end with exit code 3 if there are any."""
    if not refused:
        return
    typer.echo(f"{len(refused)} cases could not be used:", err=True)
    for name, reason in refused[:_SHOWN]:
        typer.echo(f"  {name}: {reason}", err=True)
    if len(refused) > _SHOWN:
        typer.echo(f"  and {len(refused) - _SHOWN} more", err=True)
    raise typer.Exit(EXIT_CODE)
