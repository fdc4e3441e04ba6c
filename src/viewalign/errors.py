"""Errors and warnings with a sentence for the user."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space left, a quota that is used up, a file larger than it may be."""

_UNUSABLE = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""A name that is too long, a permission that is missing, a read-only disk, a file for a folder or the reverse."""


class UserError(Exception):
    """A mistake that the user can correct. The text says what was wrong, where, and what to do, without a traceback."""


class ExcludedImageError(UserError):
    """One image cannot be used. The text is the reason alone; whoever catches it knows the file."""


class DamageWarning(UserWarning):
    """Something that was written before is damaged, and what is used instead. Commands print it like an error."""


def is_full(problem: BaseException) -> bool:
    """Return whether something could not be written because the disk is full."""
    return isinstance(problem, OSError) and problem.errno in _FULL


@contextmanager
def report_os_errors() -> Iterator[None]:
    """Turn a file that cannot be used, as on a full disk, into a sentence; also as a decorator.

    Raises:
        UserError: the disk is full, a name is too long, a permission is missing, or the like.
    """
    try:
        yield
    except OSError as problem:
        where = f" while {problem.filename} was written" if problem.filename else ""
        if is_full(problem):
            raise UserError(
                f"The disk is full, or a quota is used up{where} ({problem.strerror}). Free some space and run the "
                "same command again; what is finished stays."
            ) from None
        if problem.errno in _UNUSABLE and problem.filename:
            raise UserError(f"{str(problem.filename)[:200]} cannot be used: {problem.strerror}.") from None
        raise
