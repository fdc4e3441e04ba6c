"""A process that runs one job at a time and can be given up: when a file hangs or kills it, its caller lives on.

It is started with `subprocess`, not `multiprocessing`, because the workers of a Dask cluster are daemons, which
`multiprocessing` forbids to have children. Jobs and results travel over a pair of sockets that only the two hold.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from viewalign.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

_START_SECONDS = 120.0
_IDLE_SECONDS = 120.0
_READY = "ready"
_LIMITED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
_ONE_THREAD = dict.fromkeys(_LIMITED, "1")
"""Cores are shared out among processes, so each process keeps to one thread."""


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a job whose process was lost.

    Attributes:
        reason: what became of it, for the report.
        again: whether another try, alone on the machine, may go better.
    """

    reason: str
    again: bool = False


class Child:
    """One such process; a lost one is replaced at the next job."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None

    def run(self, work: Callable[[Job], Result], job: Job, seconds: float | None = None) -> Result | Lost:
        """Run `work(job)`; what it raises is raised here.

        Args:
            work: a function of a module, which the other process imports.
            job: sent as it is.
            seconds: how long it may take before it is given up; None waits for ever.

        Raises:
            UserError: no process can be started.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._connection.send((work, job))
            if not self._connection.poll(seconds):
                self.kill()
                return Lost(f"it took longer than the time limit of {seconds:g} s")
            succeeded, value = self._connection.recv()
        except (EOFError, ConnectionError):
            return Lost(self._epitaph(), again=True)
        if succeeded:
            result: Result = value
            return result
        raise value

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from viewalign.volumes.child import serve; serve({{}})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code.format(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_ONE_THREAD},
                stdin=subprocess.DEVNULL,
            )
        self._connection = Connection(ours.detach())
        try:
            if self._connection.poll(_START_SECONDS) and self._connection.recv() == _READY:
                return
        except (EOFError, ConnectionError):
            pass
        self.kill()
        raise UserError(f"No worker process could be started with {sys.executable}; --workers 0 does without.")

    def _epitaph(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its worker process was killed, most likely for lack of memory"
        what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the reader crashed on this file ({what})"


def serve(handle: int) -> None:
    """Be the other process: take jobs until the caller is gone or has had none for a while."""
    for number in (signal.SIGINT, signal.SIGTERM):  # these are for the caller, who ends its processes itself
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(handle)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    connection.send(_READY)
    while True:
        try:
            work, job = inbox.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            os._exit(0)
        try:
            answer = (True, work(job))
        except Exception as problem:
            answer = (False, problem)
        connection.send(answer)


def _listen(connection: Any, inbox: queue.SimpleQueue[Any]) -> None:
    """Pass jobs on; when the caller is gone, end at once, in the middle of a job too."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, ConnectionError):
        os._exit(1)
