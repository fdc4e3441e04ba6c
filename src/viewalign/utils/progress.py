"""Protocols for the messages and progress of long-running functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Bar = Callable[[int, int], None]
"""A function of (done, total)."""


class Progress(Protocol):
    """Shows messages and progress bars."""

    def say(self, text: str) -> None:
        """Print a line."""

    def bar(self, what: str) -> AbstractContextManager[Bar]:
        """Show a progress bar while the context is open."""


class NoProgress:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def bar(self, what: str) -> AbstractContextManager[Bar]:  # noqa: ARG002
        """Show nothing."""
        return nullcontext(lambda done, total: None)  # noqa: ARG005
