"""One process at a time: a lock on a file that ends with its process and says who holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from viewalign.errors import UserError

LOCK = ".run.lock"
"""In the folder of a run or a fine-tuning, while it is at work."""
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_PATIENCE, _PAUSE = 20.0, 0.2
"""Seconds. Readers of a process that was killed hold its lock until they see that it is gone, which takes them five."""


class BusyError(Exception):
    """Another process holds the lock; the text is its host and number."""


@contextmanager
def locked(file: Path, patience: float = 0.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock while the block runs.

    The system lets go of it when its process ends, however it ends, so there are no stale locks. On a file system
    without locks, and on Windows, there is none. The file stays, for removing it would let two hold it.

    Args:
        file: made where it is not there; while the lock is held, it holds the host and number of who holds it.
        patience: seconds to wait for another process; infinity for as long as it takes.
        on_wait: takes the host and number of the other process, once, where one is waited for.

    Raises:
        BusyError: another process still holds it.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    end = time.monotonic() + patience
    try:
        while not _take(handle):
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            if time.monotonic() >= end:
                raise BusyError(holder)
            if on_wait is not None:
                on_wait(holder)
                on_wait = None
            time.sleep(_PAUSE)
        _write(handle, f"{socket.gethostname()}, process {os.getpid()}\n")
        try:
            yield
        finally:
            _write(handle, "")  # a folder that is handed on names no machine
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)


def _take(handle: int) -> bool:
    """Take a lock; whether it is ours now, or there are no locks here."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return problem.errno not in _HELD
    return True


def _write(handle: int, text: str) -> None:
    """Write who holds a lock; a full disk is no reason to do without it."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder while a run or a fine-tuning works in it: two would mix their logs and checkpoints.

    Raises:
        UserError: another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, _PATIENCE))
        except BusyError as other:
            raise UserError(
                f"{other} is at work in {folder}; two at once would spoil each other's files. Wait for it or end it, "
                "or name another folder."
            ) from None
        yield
