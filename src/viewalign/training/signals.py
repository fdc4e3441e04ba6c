"""Signals that end a run: its state is saved after the current step, and a run that hangs is ended.

Python runs a signal handler only between two of its own instructions. A process that waits in a collective for
a stopped process never gets there; therefore a thread listens as well (`signal.set_wakeup_fd`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeVar

Item = TypeVar("Item")

_PATIENCE = {"SIGTERM": 25.0, "SIGUSR1": 50.0, "SIGHUP": 50.0}
"""Seconds after which a run that has not reached the end of a step is ended. Schedulers kill 30 s after SIGTERM and
send SIGUSR1 a minute or more before. Ctrl-C is not included, because it can be pressed again."""
_LAST_PATIENCE = 5.0
"""Seconds after a second signal."""
_STEPS = 4
"""Multiple of the longest step that is allowed instead, if that is more."""


class StopWaitingError(Exception):
    """A signal was received while the run waited for data."""


class StopRequest:
    """Context that records the first signal that stops a run, instead of ending the process.

    Args:
        interrupt_waits: whether a wait for data ends with `StopWaitingError`. With several processes it must not, since
            all of them save together.
        last_words: returns the message if the run hangs and is ended without saving.

    Attributes:
        signal: the number of the received signal, or None.
    """

    def __init__(self, interrupt_waits: bool = True, last_words: Callable[[], str] = lambda: "") -> None:
        self.signal: int | None = None
        self._interrupt_waits, self._last_words = interrupt_waits, last_words
        self._waiting = False
        self._before: dict[int, Any] = {}
        self._beat, self._longest, self._patient = time.monotonic(), 0.0, False
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._wakeup_before = -1

    def __enter__(self) -> StopRequest:
        """Install handlers, if this is the main thread; an ignored SIGHUP, as under nohup, is not changed."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in ("SIGINT", *_PATIENCE):
            number = getattr(signal, name, None)  # Windows has only some of them
            if number is not None and (name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._remember)
        self._sockets = reading, writing = socket.socketpair()
        writing.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reading,), daemon=True, name="signals").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers and release the run: a cycle would keep its process group until Python ends."""
        self._last_words = str
        if self._sockets is None:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._sockets[1].close()  # ends the thread

    def beat(self) -> None:
        """Record the start of a step, or progress within it."""
        now = time.monotonic()
        self._longest, self._beat = max(self._longest, now - self._beat), now

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Do not take this for a hang: a wait for another process, or work of any length that is not a step."""
        self._patient = True
        try:
            yield
        finally:
            self._beat, self._patient = time.monotonic(), False

    def items(self, source: Generator[Item]) -> Generator[Item]:
        """Yield from a source of data; a signal ends a wait for it.

        Raises:
            StopWaitingError: a signal was received while waiting for the source.
        """
        while True:
            self._waiting = self._interrupt_waits
            try:
                if self._waiting and self.signal is not None:
                    raise StopWaitingError
                item = next(source, None)
            finally:
                self._waiting = False
            if item is None:
                return
            yield item

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if self._waiting:
            self._waiting = False
            raise StopWaitingError

    def _listen(self, reading: socket.socket) -> None:
        """End the process if it does not end in time after a signal."""
        first = self._received(reading, None)
        if first is None:
            return
        came, second = time.monotonic(), False
        patience = _PATIENCE.get(signal.Signals(first).name, float("inf"))
        while True:
            left = max(came, self._beat) + (_LAST_PATIENCE if second else max(patience, _STEPS * self._longest))
            wait = left - time.monotonic() if second or not self._patient else 1.0
            if wait <= 0:
                break
            try:
                if self._received(reading, min(wait, 1.0)) is None:
                    return
                came, second = time.monotonic(), True
            except TimeoutError:
                continue
        name = signal.Signals(first).name
        print(f"{name}: the run does not respond and is ended.", file=sys.stderr)
        print(self._last_words(), file=sys.stderr, flush=True)
        os._exit(128 + first)

    def _received(self, reading: socket.socket, seconds: float | None) -> int | None:
        """Return the next signal for this object; None if it is closed.

        Raises:
            TimeoutError: none was received in time.
        """
        reading.settimeout(seconds)
        while content := reading.recv(1):
            if content[0] in self._before:
                return content[0]
        reading.close()
        return None


def leave_signals_to_the_run() -> None:
    """Ignore signals in a process started by a run: a terminal's or scheduler's signals to all are for the run."""
    signal.set_wakeup_fd(-1)  # that of the run, inherited
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
