"""Lines with the time since the start, and progress bars: what long commands tell a person."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import typer


class Teller:
    """Says what is done."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        seconds = round(time.monotonic() - self._began)
        typer.echo(f"[{seconds // 60}:{seconds % 60:02d}] {text}")

    def bar(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Show a long piece of work."""
        from viewalign.cli.progress import progress_bar

        return progress_bar(what)
