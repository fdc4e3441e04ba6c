"""What can go wrong through the user's input, said in sentences."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left, a quota that is used up, a file larger than it may be."""


class UserError(Exception):
    """A mistake a user can mend. Its text names what was wrong, where, and what to do; no traceback is shown for it."""


class ExcludedImageError(UserError):
    """One image cannot be used. The text is the reason alone; whoever catches it knows the file."""


def is_full(problem: BaseException) -> bool:
    """Say whether something could not be written for lack of room."""
    return isinstance(problem, OSError) and problem.errno in _FULL


@contextmanager
def report_disk_full() -> Iterator[None]:
    """Turn a write that failed for lack of room into a sentence; also as a decorator.

    Raises:
        UserError: the disk is full.
    """
    try:
        yield
    except OSError as problem:
        if not is_full(problem):
            raise
        where = f" while {problem.filename} was written" if problem.filename else ""
        raise UserError(
            f"The disk is full, or a quota is used up{where} ({problem.strerror}). Make room and run the same command "
            "again; what is finished stays."
        ) from None
