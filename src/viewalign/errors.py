"""Errors and warnings with a message for the user."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left, an exceeded quota, a file larger than allowed."""

_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""A name that is too long, a missing permission, a read-only disk, a file instead of a folder or vice versa."""


_DENIED = (errno.EACCES, errno.EPERM)
_FAILING = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EREMOTEIO)
"""A failing disk, or a network share that was lost."""


class UserError(Exception):
    """An error that the user can correct. The message says what was wrong, where, and what to do; no traceback."""


class ExcludedImageError(UserError):
    """One image cannot be used. The message is only the reason; the code that catches it adds the file."""


class EmptyImageError(ExcludedImageError):
    """All voxels of an image are zero, which in some datasets stands for a missing channel."""

    def __init__(self, reason: str = "all voxels are zero") -> None:
        super().__init__(reason)


class StoppedError(KeyboardInterrupt):
    """A signal ended the work after its state was saved; raised so that a caller does not continue with half of it.

    Like any `KeyboardInterrupt`, it is not an `Exception`: it ends a script, and a notebook's cells after this one.

    Attributes:
        result: of the work so far.
        code: exit code of a command, 128 + the signal's number; 0 if the work was completed nevertheless.
    """

    def __init__(self, message: str, result: Any, code: int) -> None:
        super().__init__(message)
        self.result, self.code = result, code


class DamageWarning(UserWarning):
    """A stored file is damaged; the message says what is used instead. Commands print it like an error."""


def usual_reason(excluded: Sequence[tuple[str, str]]) -> str:
    """Describe why most files or cases were excluded: the most frequent reason, regardless of numbers, with an example.

    Args:
        excluded: name and reason of each.
    """
    if not excluded:
        return ""
    kinds = [re.sub(r"\d[\d.,]*", "", reason) for _, reason in excluded]
    kind, count = Counter(kinds).most_common(1)[0]
    name, reason = excluded[kinds.index(kind)]
    return f"The most frequent reason ({count} of {len(excluded)}), as for {name}: {reason}."


def is_full(problem: BaseException) -> bool:
    """Return whether writing failed because the disk is full."""
    return isinstance(problem, OSError) and problem.errno in _FULL


def is_access_error(problem: BaseException) -> bool:
    """Return whether a file could not be read for want of permission or of its disk, which says nothing about it."""
    return isinstance(problem, OSError) and problem.errno in (*_DENIED, *_FAILING)


def os_reason(problem: BaseException) -> str:
    """Return why a file or folder could not be read, as a clause, with what to do about common causes."""
    code = problem.errno if isinstance(problem, OSError) else None
    if code in _DENIED:
        return "permission denied; allow reading it and entering the folders above it, such as with chmod -R u+rX"
    if code in _FAILING:
        return f"{os.strerror(code)}; check the disk or the network share"
    return str(getattr(problem, "strerror", None) or problem)


@contextmanager
def report_os_errors() -> Iterator[None]:
    """Turn an `OSError` that the user can correct, such as a full disk, into a `UserError`; also a decorator.

    Raises:
        UserError: the disk is full, a name is too long, a permission is missing, or the like.
    """
    try:
        yield
    except OSError as problem:
        where = f" while writing {problem.filename}" if problem.filename else ""
        if is_full(problem):
            raise UserError(
                f"The disk is full or the quota is exceeded{where} ({problem.strerror}). Free some space and run the "
                "same command again; finished work is kept."
            ) from None
        if problem.errno in (*_UNUSABLE, *_FAILING) and problem.filename:
            raise UserError(f"{str(problem.filename)[:200]} cannot be used: {problem.strerror}.") from None
        raise
