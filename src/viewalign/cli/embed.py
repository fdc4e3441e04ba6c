"""`viewalign embed`: one embedding per case."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from viewalign.cli.finetune import Encoder, Task
from viewalign.cli.grammar import Result, settings_of
from viewalign.utils.console import code_of_excluded, stages


def embed(
    context: typer.Context,
    encoder: Encoder,
    task: Task,
    out: Annotated[Path, typer.Option("-o", "--out", help="The .npz or .parquet file to write.", show_default=False)],
) -> Result:
    """Compute one embedding per case, deterministically.

    The file contains arrays [b]case[/b], [b]features[/b], optionally [b]maps[/b], and [b]facts[/b] with hashes of the
    encoder and of the preprocessing; a .parquet is a table with them as columns and metadata.

    Exit code: 0 all cases were embedded, 3 some were excluded.

    [b]Example[/b]

    viewalign embed run task -o run.npz patch_size=96
    """
    import viewalign

    with stages() as report:
        found = viewalign.embed(encoder, task, out, on_progress=report, **settings_of(context))
    width = found.features.shape[1]
    facts = {"out": out, "cases": found.cases, "features": width, "excluded": dict(found.excluded), **found.facts}
    return Result(facts, f"{len(found.cases)} cases, {width} numbers each: {out}", code_of_excluded(found.excluded))
