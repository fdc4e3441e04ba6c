"""Many small jobs on any `concurrent.futures` executor: bounded memory, and a file that kills or hangs its process
takes only its own job with it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from viewalign.volumes.child import Child, Lost

Job = TypeVar("Job")
Result = TypeVar("Result")

_AHEAD = 2  # jobs handed out per worker: enough that none waits, few enough that memory does not grow
_LOST_WORKER = ("KilledWorker", "FutureCancelledError")  # Dask's, which need not be installed
_POLL_SECONDS = 10.0  # how often it is asked whether a cluster has grown

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
) -> Iterator[tuple[Job, Result | Lost]]:
    """Yield (job, result) as results arrive.

    Whoever runs a job does so in a child process of its own (`child.Child`). A job whose process died is tried once
    more at the end, alone: it may have fallen to what others did, such as taking all memory.

    Args:
        work: a function of a module, so that it can be sent to another process.
        jobs: taken one by one, never more than a few ahead of the results.
        workers: how many jobs run at a time, or a function that tells; 0 runs everything in this process, unguarded.
        seconds: how long a job may take.
        executor: who runs the jobs; None makes threads here, each with its child.
    """
    if workers == 0 and executor is None:
        for job in jobs:
            yield job, work(job)
        return
    count = workers if callable(workers) else lambda: workers
    own = ThreadPoolExecutor(max(1, count())) if executor is None else None
    children: set[Child] = set()
    call = partial(_guarded, work, seconds, children if own else None)
    lost: list[Job] = []
    try:
        for job, result in _through(own or executor, call, iter(jobs), lambda: _AHEAD * max(1, count())):
            if isinstance(result, Lost) and result.again:
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
    work: Callable[[Job], Result], seconds: float | None, children: set[Child] | None, job: Job
) -> Result | Lost:
    """Run a job in this thread's child process; `children` is told of a new one."""
    if not hasattr(_mine, "child"):
        _mine.child = Child()
    if children is not None:
        children.add(_mine.child)
    result: Result | Lost = _mine.child.run(work, job, seconds)
    return result


def _through(
    executor: Executor | None, call: Callable[[Job], Result | Lost], source: Iterator[Job], ahead: Callable[[], int]
) -> Iterator[tuple[Job, Result | Lost]]:
    """Hand out jobs, `ahead` of them at a time, and yield what comes back."""
    assert executor is not None
    running: dict[Future[Result | Lost], Job] = {}
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


def _result(future: Future[Result | Lost]) -> Result | Lost:
    """Return what came back; a worker of a cluster that was lost for good costs its job alone."""
    try:
        return future.result()
    except Exception as problem:
        if type(problem).__name__ in _LOST_WORKER:
            return Lost(f"the worker that had it was lost ({type(problem).__name__})")
        raise
