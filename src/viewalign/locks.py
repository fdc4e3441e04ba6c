"""One process at a time: a lock on a file that ends with its process and says who holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


class BusyError(Exception):
    """Another process holds the lock; the text is its host and number."""


@contextmanager
def locked(file: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock while the block runs.

    The system lets go of it when its process ends, however it ends, so there are no stale locks. On a file system
    without locks, and on Windows, there is none. The file stays, for removing it would let two hold it.

    Args:
        file: made where it is not there; it holds the host and number of the last who held it.
        wait: whether to wait for the other process.

    Raises:
        BusyError: another process holds it, and `wait` is not set.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as problem:
            if problem.errno in _HELD:
                holder = os.read(handle, 200).decode(errors="replace").strip()
                raise BusyError(holder or "another process") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{socket.gethostname()}, process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)
