"""Locks on folders between processes: they are released when their process ends, and name their holder."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from viewalign.errors import UserError

LOCK = ".run.lock"
"""Lock file in the folder of a run, a fine-tuning or a store. It is kept: removing it would allow two holders."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_PATIENCE, _PAUSE = 20.0, 0.2
"""Seconds. Reader processes of a killed process hold its lock until they detect its end, which takes five."""
_log = logging.getLogger(__name__)


class BusyError(Exception):
    """Another process holds the lock; the message is its host and process number."""


@contextmanager
def locked(file: Path, patience: float = 0.0, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock while the block runs.

    The operating system releases it when the process ends for any reason, so that there are no stale locks. On a file
    system without locks a warning is logged and nothing is locked; filelock's fallback, a file that merely exists, is
    not used, because a killed job would prevent its successor on another node from resuming.

    Args:
        file: created if missing; while the lock is held, it contains host and process number of the holder.
        patience: seconds to wait for another process; infinity waits without a limit.
        on_wait: called once with host and process number of the other process before waiting for it.

    Raises:
        BusyError: another process still holds it.
    """
    lock = FileLock(file, poll_interval=_PAUSE, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)
    try:
        _acquire(lock, file, patience, on_wait)
    except OSError as problem:
        if problem.errno not in _NO_LOCKS:
            raise
        _log.warning("%s: file system without locks; do not start two processes in this folder", file.parent)
    with suppress(OSError):  # on a full disk the holder is not named
        _write_holder(file, f"{socket.gethostname()}, process {os.getpid()}")
    try:
        yield
    finally:
        with suppress(OSError):
            _write_holder(file, "")  # a folder that is shared names no machine
        lock.release()


def _acquire(lock: FileLock, file: Path, patience: float, on_wait: Callable[[str], None] | None) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        if on_wait is not None:
            on_wait(_holder(file))
    try:
        lock.acquire(timeout=-1 if math.isinf(patience) else patience)
    except Timeout:
        raise BusyError(_holder(file)) from None


def _write_holder(file: Path, text: str) -> None:
    """Write after the first byte, which is locked on Windows and cannot be written or read there."""
    with file.open("rb+", buffering=0) as stream:
        stream.seek(1)
        stream.write(text.encode())
        stream.truncate()


def _holder(file: Path) -> str:
    with suppress(OSError), file.open("rb", buffering=0) as stream:
        stream.seek(1)
        return stream.read(200).decode(errors="replace").strip() or "another process"
    return "another process"


@contextmanager
def lock_folder(folder: Path, part: str = "", otherwise: str = "use another folder") -> Iterator[None]:
    """Lock a folder while a command writes to it: two commands would mix their files.

    Args:
        folder: created if missing.
        part: name of a part of the work. Parts share the folder, each with its own name; without a name the lock is
            exclusive.
        otherwise: alternative to waiting, for the error message.

    Raises:
        UserError: another process is writing to it, or it is not a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file or a broken link, not a folder. Use another name.") from None
    with ExitStack() as stack:
        try:
            stack.enter_context(_part(folder, part) if part else _alone(folder))
        except BusyError as other:
            raise UserError(
                f"{other} is writing into {folder}; two processes at once would mix their files. Wait for it or end "
                f"it, or {otherwise}."
            ) from None
        yield


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with locked(folder / LOCK, _PATIENCE):
        for part in folder.glob(f"{LOCK}-*"):
            with locked(part):
                _remove(part)
        yield


@contextmanager
def _part(folder: Path, part: str) -> Iterator[None]:
    """Hold the lock of a part; the folder's own lock is held only meanwhile, so that other parts may join."""
    file = folder / f"{LOCK}-{part}"
    with ExitStack() as stack:
        with locked(folder / LOCK, _PATIENCE):
            stack.enter_context(locked(file))
        try:
            yield
        finally:
            _remove(file)


def _remove(file: Path) -> None:
    """Remove a part's lock file while it is held; Windows keeps open files, which is harmless."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
