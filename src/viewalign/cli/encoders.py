"""`viewalign encoders`: public encoders that load by a name."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.grammar import Result

if TYPE_CHECKING:
    from viewalign.weights.published import PublishedEncoder


def encoders(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show one of them in full.", show_default=False)
    ] = None,
) -> Result:
    """List public 3D encoders that every command and `load_encoder` take by name.

    They are fetched when they are first used, into the cache of the Hugging Face
    Hub, or into the folder that the environment variable VIEWALIGN_CACHE names. Where
    nothing may be fetched, copy that folder and use `viewalign --offline`.

    [b]Examples[/b]

    viewalign encoders openmind-mae-resenc-l

    viewalign probe task openmind-mae-resenc-l

    viewalign fetch weights openmind-mae-resenc-l -o weights
    """
    from viewalign.weights.published import ENCODERS, published

    if name is None:
        return Result(ENCODERS, partial(_print_table, ENCODERS))
    entry = published(name)
    return Result({"name": name, **asdict(entry)}, partial(_print, entry))


def _print_table(entries: dict[str, PublishedEncoder]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "network", "method", "licence", box=None, pad_edge=False)
    for key, entry in entries.items():
        table.add_row(key, entry.network or "several", entry.method, entry.licence or "see its page")
    Console(highlight=False).print(table)


def _print(entry: PublishedEncoder) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    voxels = "each image's own" if entry.spacing is None else " x ".join(f"{mm:g}" for mm in entry.spacing) + " mm"
    rows = {
        "source": entry.source,
        "network": entry.network or "several files; name one as SOURCE/FILE",
        "method": entry.method,
        "data": entry.data,
        "voxel size": voxels,
        "preparation": entry.preparation,
        "licence": entry.licence or "see its page",
        "cite": entry.cite,
        "SHA-256": entry.sha256 or "not recorded",
        "tried": entry.tried,
    }
    for key, value in rows.items():
        console.print(f"[b]{key + ':':<13}[/b]{value}", soft_wrap=True)
