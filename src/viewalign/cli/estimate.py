"""`viewalign estimate`: disk, memory and hours, before anything is written."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viewalign.cli.grammar import Result, settings_of
from viewalign.cli.prepare import Source
from viewalign.utils.console import stages
from viewalign.utils.io import write_json
from viewalign.utils.outputs import check_file, has_keys

if TYPE_CHECKING:
    from viewalign.training.estimate import Estimate


def estimate(
    context: typer.Context,
    source: Source,
    recipe: Annotated[str, typer.Argument(help="The pretraining recipe (see `viewalign recipes`).")] = "cva-resenc-l",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE.json", help="Also write the estimate as JSON.", show_default=False),
    ] = None,
) -> Result:
    """Estimate the cost of preparation and pretraining, before anything is written.

    Sizes are read from headers; a few images are prepared in memory, convolutions
    are timed for some seconds, and a step's memory is counted on a simulated GPU:
    about a minute in total.

    [b]Examples[/b]

    viewalign estimate catalogue.json

    viewalign estimate catalogue.json cva-primus-m batch=8 gpu=a100,h100

    viewalign estimate ~/scans cva-resenc-xs prepare.spacing=1.5 prepare.dtype=int16
    """
    import viewalign

    if out is not None:
        check_file(out, "estimate", (".json",), has_keys("preparation", "pretraining"))
    with stages() as report:
        found = viewalign.estimate(source, recipe, on_progress=report, **settings_of(context))
    if out is not None:
        write_json(out, found.facts)
    return Result(found.facts, partial(_print, found, recipe, out))


def _print(found: Estimate, recipe: str, out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    notes: list[str] = []
    titles = (f"Preparation: {found.settings}", found.preparation), (f"Pretraining: {recipe}", found.pretraining)
    for title, lines in titles:
        table = Table(title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for line in lines:
            if line.source and line.source not in notes:
                notes.append(line.source)
            mark = f"[{notes.index(line.source) + 1}]" if line.source else ""
            table.add_row(Text(line.what), Text(line.value), Text(mark))
        console.print(table)
        console.print()
    for number, note in enumerate(notes):
        console.print(f"[{number + 1}] {note}.", highlight=False, markup=False)
    if out is not None:
        typer.echo(f"Written to {out}.")
