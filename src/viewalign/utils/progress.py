"""Progress of long calls: messages through `logging` (the logger `viewalign`), and progress bars.

A script sees warnings and no bars, as with other libraries; `show_progress` shows all of it, as the command line does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Bar = Callable[[int, int], None]
"""A function of (done, total)."""
_CONSOLE = "viewalign console"
_state: dict[str, bool | None] = {"shown": None}
"""Whether progress is shown; None, as in a script: the progress line of a training is, bars are not."""


def progress_bar(what: str, note: Callable[[], str] | None = None) -> AbstractContextManager[Bar]:
    """Show a progress bar while the context is open, if progress is shown; yields a function of (done, total).

    Args:
        what: the work, e.g. `Preprocessing`.
        note: called for a short text to show behind the bar.
    """
    if not _state["shown"]:
        return nullcontext(lambda done, total: None)  # noqa: ARG005
    from viewalign.utils.console import console_bar

    return console_bar(what, note)


def shows_line() -> bool:
    """Return whether a training shows its progress line."""
    return _state["shown"] is not False


def reset_progress() -> logging.Logger:
    """Show the messages that a script sees by default; return the package's logger."""
    logger = logging.getLogger("viewalign")
    for handler in list(logger.handlers):
        if handler.name == _CONSOLE:
            logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    _state["shown"] = None
    return logger


def show_progress(level: int = logging.INFO) -> None:
    """Show messages and progress bars on standard error, as the command line does.

    Args:
        level: of `logging`; `logging.WARNING` shows warnings only, and neither bars nor a training's progress line.

    Example:
        ```python
        viewalign.show_progress()
        viewalign.finetune("segmentation", 2, "run", "heart", folds=1)
        ```
    """
    from viewalign.utils.console import ConsoleHandler

    logger = reset_progress()
    first = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0
    if first:
        handler = ConsoleHandler(level)
        handler.name = _CONSOLE
        logger.addHandler(handler)
    logger.setLevel(min(level, logging.INFO))  # a run's own run.log has messages that the console does not show
    _state["shown"] = first and level <= logging.INFO
