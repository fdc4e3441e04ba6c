"""Messages and progress on the console."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, ClassVar, TextIO

import typer

from viewalign.errors import is_full
from viewalign.utils.io import visible
from viewalign.utils.progress import progress_bar
from viewalign.utils.text import counted

if TYPE_CHECKING:
    from rich.console import Console

_ECHOED, _PRINTED = 20, 10
"""Largest number of lines printed for a list: cases on standard error, files in a command's result."""
EXIT_CODE = 3
"""Some cases were excluded, the others succeeded."""


def code_of_excluded(excluded: Sequence[tuple[str, str]]) -> int:
    """List the cases that could not be used on standard error; return the exit code, 3 if there are any, else 0."""
    if not excluded:
        return 0
    typer.echo(f"{counted(len(excluded), 'case')} could not be used:", err=True)
    echo_first([f"{name}: {reason}" for name, reason in excluded])
    return EXIT_CODE


def echo_first(lines: Sequence[str]) -> None:
    """Write the first lines of a list to standard error, and the number of the others."""
    for line in lines[:_ECHOED]:
        typer.echo(f"  {visible(line)}", err=True)
    if len(lines) > _ECHOED:
        typer.echo(f"  and {len(lines) - _ECHOED} more", err=True)


def show_excluded(console: Console, excluded: Sequence[tuple[str, str]]) -> None:
    """Print the first few excluded files."""
    print_first(console, [f"excluded: {file}: {reason}" for file, reason in excluded], "yellow")


def print_first(console: Console, lines: Sequence[str], style: str | None = None) -> None:
    """Print the first lines of a list, and the number of the others."""
    for line in lines[:_PRINTED]:
        console.print(visible(f"  {line}"), style=style, highlight=False, markup=False, soft_wrap=True)
    if len(lines) > _PRINTED:
        console.print(f"  … and {len(lines) - _PRINTED} more", style=style, highlight=False)


SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def console_bar(what: str, note: Callable[[], str] | None = None) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that shows progress.

    Args:
        what: the work, e.g. `Preparing`.
        note: returns a short text to show after the bar.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with _bar(what, note, console) if console.is_terminal else _lines(what, note, console) as report:
        yield report


@contextmanager
def _bar(what: str, note: Callable[[], str] | None, console: Console) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, note="")
        yield lambda done, total: progress.update(task, completed=done, total=total, note=note() if note else "")


@contextmanager
def _lines(what: str, note: Callable[[], str] | None, console: Console) -> Iterator[Callable[[int, int], None]]:
    last = time.monotonic()
    first: tuple[float, int] | None = None

    def report(done: int, total: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        # The first report comes after start-up, or counts work of an earlier call.
        first = first or (now, done)
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        seconds, since = now - first[0], done - first[1]
        left = f"{duration(seconds / since * (total - done))} left" if since > 0 else ""
        words = ", ".join(part for part in (f"{what}: {done} of {total}", left, note() if note else "") if part)
        console.print(words, highlight=False, markup=False, soft_wrap=True)

    yield report


def duration(seconds: float) -> str:
    """Return a number of seconds as text: `2 h 05 min`, `3 min 20 s`, `12 s`."""
    total = round(seconds)
    hours, minutes, rest = total // 3600, total % 3600 // 60, total % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (what, done, total) with a progress bar for each `what`; words after a comma are a note."""
    latest = [""]
    with ExitStack() as stack:
        bars: dict[str, Callable[[int, int], None]] = {}

        def report(words: str, done: int, total: int) -> None:
            what, _, latest[0] = words.partition(", ")
            if what not in bars:
                stack.close()
                bars[what] = stack.enter_context(progress_bar(what, lambda: latest[0]))
            bars[what](done, total)

        yield report


class ProgressLine:
    """The progress line: redrawn in place on a terminal, a new line every few seconds elsewhere.

    Its stream may be a file on a full disk, a pipe whose reader has ended, or a terminal that was closed: what cannot
    be written then is lost, and training continues.
    """

    current: ClassVar[ProgressLine | None] = None
    """The line above which messages are written."""

    def __init__(self, stream: TextIO | None = None, seconds: float = 10.0, quiet: bool = False) -> None:
        self._quiet = quiet
        self._stream: TextIO = io.StringIO() if quiet else stream or sys.stderr
        self._live = self._stream.isatty()
        self._seconds, self._last, self._width = seconds, -float("inf"), 0

    def __enter__(self) -> ProgressLine:
        """Keep the line at the bottom of the console: messages are written above it."""
        if not self._quiet:
            ProgressLine.current = self
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the line as it is."""
        ProgressLine.current = None
        if self._live and self._width:
            self._write("\n")
            self._width = 0

    def show(self, text: str, force: bool = False) -> None:
        """Show a line; `force` writes it even if the last one is recent."""
        now = time.monotonic()
        if self._live:
            text = text[: max(20, shutil.get_terminal_size().columns - 1)]  # a wrapped line cannot be overwritten
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif force or now - self._last >= self._seconds:
            self._write(text + "\n")
            self._last = now

    def say(self, text: str, mark: str = "") -> None:
        """Write a permanent line; `mark`, which may have a colour, comes before it."""
        self._write(("\r" + " " * self._width + "\r" if self._live else "") + mark + visible(text) + "\n")
        self._width = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BlockingIOError:
            return
        except (OSError, ValueError) as problem:  # ValueError: the stream was closed
            if not is_full(problem):
                if self._stream is sys.stderr:
                    _write_nowhere()
                self._stream, self._live = io.StringIO(), False


def _write_nowhere() -> None:
    """Discard further output to standard error: Python itself would fail at its end when it flushes the stream."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.__stderr__.fileno() if sys.__stderr__ else 2)
        os.close(nowhere)


class ConsoleHandler(logging.Handler):
    """Writes messages to standard error, above the progress line if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; warnings and errors are marked."""
        mark = f"{_marked('viewalign:', sys.stderr)} " if record.levelno >= logging.WARNING else ""
        (ProgressLine.current or ProgressLine()).say(self.format(record), mark)


def _marked(text: str, stream: TextIO) -> str:
    coloured = stream.isatty() and not os.environ.get("NO_COLOR")
    return typer.style(text, fg="yellow", bold=True) if coloured else text
