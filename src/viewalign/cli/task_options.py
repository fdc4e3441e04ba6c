"""Options that all commands on a task's cases share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Cache = Annotated[
    Path | None,
    typer.Option(help="Folder that keeps prepared cases for the next encoder, and the next time.", show_default=False),
]

CaseWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that read and prepare cases; 0 leaves it to this one, without guard against files that crash "
        "it. Default: one per core, up to 16; 0 for 16 cases or fewer.",
        show_default=False,
    ),
]
