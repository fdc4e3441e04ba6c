"""A process that runs one job at a time and can be killed: a file that hangs or crashes it does not affect its caller.

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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import viewalign
from viewalign.errors import UserError
from viewalign.utils.extras import missing

Job = TypeVar("Job")
Result = TypeVar("Result")

MANY = 500
"""Headers from which on it pays to start processes."""
_START_SECONDS = 120.0
_IDLE_SECONDS = 120.0
_READY = "ready"
_LIMITED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
_ONE_THREAD = dict.fromkeys(_LIMITED, "1")
"""Cores are divided among processes, so that each process uses one thread."""


@dataclass(frozen=True)
class WorkerLost:
    """Result of a job whose process was lost.

    Attributes:
        reason: for the report.
        again: whether to try again, with no other job running.
    """

    reason: str
    again: bool = False


class SubprocessWorker:
    """A worker process; a lost one is replaced at the next job."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None

    def run(self, work: Callable[[Job], Result], job: Job, seconds: float | None = None) -> Result | WorkerLost:
        """Run `work(job)`; its exceptions are raised here.

        Args:
            work: a function of a module, which the other process imports.
            job: its argument.
            seconds: how long it may take before the process is killed; None for no limit.

        Raises:
            UserError: no process can be started.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._connection.send((work, job))
            if not self._connection.poll(seconds):
                self.kill()
                return WorkerLost(f"it took longer than the time limit of {seconds:g} s")
            succeeded, value = self._connection.recv()
        except (EOFError, ConnectionError):
            return WorkerLost(self._epitaph(), again=True)
        if succeeded:
            result: Result = value
            return result
        raise value

    def kill(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from viewalign.data.worker_pool import serve; serve({{}})"
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
        raise UserError(f"No worker process could be started with {sys.executable}; workers=0 uses none.")

    def _epitaph(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its worker process was killed, most likely for lack of memory"
        what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the reader crashed on this file ({what})"


def serve(handle: int) -> None:
    """Run in the worker process: take jobs until the caller has ended or has sent none for a while."""
    for number in (signal.SIGINT, signal.SIGTERM):  # these are for the caller, which ends its processes
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
    """Pass jobs on; end at once when the caller has ended, also during a job."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, ConnectionError):
        os._exit(1)


_AHEAD = 2  # queued jobs per worker: enough that none waits, few enough to bound memory
_LOST_WORKER = ("KilledWorker", "FutureCancelledError")  # Dask's, which may be missing
_POLL_SECONDS = 10.0  # interval between checks whether a cluster has grown

_mine = threading.local()


def default_workers() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int | Callable[[], int],
    seconds: float | None = None,
    executor: Executor | None = None,
) -> Iterator[tuple[Job, Result | WorkerLost]]:
    """Yield (job, result) as results arrive.

    Each job runs in a child process. A job whose process died is tried again at the end, when no other job
    runs: others may have caused it, such as by taking all memory.

    Args:
        work: a function of a module, so that it can be sent to another process.
        jobs: taken one by one, never more than a few ahead of the results.
        workers: how many jobs run at a time, or a function that returns it; 0 runs all in this process, unprotected.
        seconds: how long a job may take.
        executor: runs the jobs; None uses threads of this process, each with a child.
    """
    if workers == 0 and executor is None:
        for job in jobs:
            yield job, work(job)
        return
    count = workers if callable(workers) else lambda: workers
    own = ThreadPoolExecutor(max(1, count())) if executor is None else None
    children: set[SubprocessWorker] = set()
    call = partial(_guarded, work, seconds, children if own else None)
    lost: list[Job] = []
    try:
        for job, result in _through(own or executor, call, iter(jobs), lambda: _AHEAD * max(1, count())):
            if isinstance(result, WorkerLost) and result.again:
                lost.append(job)
            else:
                yield job, result
        yield from _through(own or executor, call, iter(lost), lambda: 1)
    finally:
        if own is not None:
            own.shutdown(wait=False, cancel_futures=True)
            for child in list(children):
                child.kill()
            own.shutdown(wait=True)


def _guarded(
    work: Callable[[Job], Result], seconds: float | None, children: set[SubprocessWorker] | None, job: Job
) -> Result | WorkerLost:
    """Run a job in this thread's child process; `children` gets each new one."""
    if not hasattr(_mine, "child"):
        _mine.child = SubprocessWorker()
    if children is not None:
        children.add(_mine.child)
    result: Result | WorkerLost = _mine.child.run(work, job, seconds)
    return result


def _through(
    executor: Executor | None,
    call: Callable[[Job], Result | WorkerLost],
    source: Iterator[Job],
    ahead: Callable[[], int],
) -> Iterator[tuple[Job, Result | WorkerLost]]:
    """Submit jobs, `ahead` of them at a time, and yield results."""
    assert executor is not None
    running: dict[Future[Result | WorkerLost], Job] = {}
    more = True
    try:
        while more or running:
            while more and len(running) < ahead():
                job = next(source, None)
                more = job is not None
                if job is not None:
                    running[executor.submit(call, job)] = job
            done, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), _result(future)
    finally:
        for future in running:
            future.cancel()


def _result(future: Future[Result | WorkerLost]) -> Result | WorkerLost:
    """Return a result; a lost worker of a cluster affects only its job."""
    try:
        return future.result()
    except Exception as problem:
        if type(problem).__name__ in _LOST_WORKER:
            return WorkerLost(f"its worker was lost ({type(problem).__name__})")
        raise


_SECONDS_TO_CONNECT = 30


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs jobs.

    Attributes:
        executor: accepts jobs.
        threads: returns how many jobs it runs at a time; a cluster may grow and shrink.
        workers: their number at the start.
    """

    executor: Executor
    threads: Callable[[], int]
    workers: int


@contextmanager
def dask_cluster(address: str, store: Path) -> Iterator[Cluster]:
    """Connect to a Dask scheduler.

    Args:
        address: such as `tcp://host:8786`, or the path of a scheduler file.
        store: created if missing; every worker must be able to access it.

    Raises:
        UserError: Dask is not installed, no scheduler answers, or a worker has another viewalign or does not see the
            store.
    """
    client = _connect(address)
    try:
        store.mkdir(parents=True, exist_ok=True)
        facts: dict[str, tuple[str, bool]] = client.run(_look, str(store.absolute()))
        for worker, (version, sees) in sorted(facts.items()):
            if version != viewalign.__version__:
                raise UserError(
                    f"The worker {worker} has viewalign {version}, and this is {viewalign.__version__}. Install the "
                    "same version everywhere, as stores must not depend on it."
                )
            if not sees:
                raise UserError(
                    f"The worker {worker} cannot access {store.absolute()}. Use a folder that all workers share."
                )
        yield Cluster(client.get_executor(retries=0), lambda: sum(client.nthreads().values()), len(facts))
    finally:
        client.close()


def _connect(address: str) -> Any:
    try:
        import distributed
    except ImportError:
        raise missing("scheduler= needs Dask", "cluster") from None
    library: Any = distributed  # not all of it is typed
    where: dict[str, Any] = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        return library.Client(**where, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as problem:
        raise UserError(
            f"No Dask scheduler answers at {address} ({problem}). Is it running, and is the port open?"
        ) from None


def _look(store: str) -> tuple[str, bool]:
    """Run on each worker: return its version, and whether it can access the store."""
    import viewalign as theirs

    return theirs.__version__, Path(store).is_dir()
