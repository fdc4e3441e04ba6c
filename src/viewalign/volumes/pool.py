"""Many small jobs in worker processes: bounded memory, and a worker that dies takes only its own job with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_AHEAD = 2  # jobs handed out per worker: enough that none waits, few enough that memory does not grow


class Crashed:
    """Stands for the result of a job whose worker died while it ran alone."""


def default_workers() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    work: Callable[[Job], Result], jobs: Iterable[Job], workers: int, start: Callable[[], None] | None = None
) -> Iterator[tuple[Job, Result | Crashed]]:
    """Yield (job, result) as results arrive.

    When a worker dies, every job that was under way is run again alone; one that kills its worker then too comes back
    as `Crashed`.

    Args:
        work: a function of a module, so that it can be sent to another process.
        jobs: taken one by one, never more than a few ahead of the results.
        workers: number of processes; 0 runs everything in this one.
        start: called once in each new process.
    """
    if workers == 0:
        for job in jobs:
            yield job, work(job)
        return
    source = iter(jobs)
    while (suspects := (yield from _until_broken(work, source, workers, start))) is not None:
        while suspects:
            broken = yield from _until_broken(work, iter(suspects), 1, start, ahead=1)
            if broken is None:
                break
            yield broken[0], Crashed()
            suspects = suspects[suspects.index(broken[0]) + 1 :]


def _until_broken(
    work: Callable[[Job], Result],
    source: Iterator[Job],
    workers: int,
    start: Callable[[], None] | None,
    ahead: int = _AHEAD,
) -> Generator[tuple[Job, Result | Crashed], None, list[Job] | None]:
    """Run jobs until none is left (None) or a worker dies (the jobs that were under way)."""
    running: dict[Future[Result], Job] = {}
    context = multiprocessing.get_context("spawn")  # forking a process with threads may hang it
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(start,))
    try:
        while True:
            while len(running) < workers * ahead:
                job = next(source, None)
                if job is None:
                    break
                try:
                    running[executor.submit(work, job)] = job
                except BrokenProcessPool:
                    return [*running.values(), job]
            if not running:
                return None
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                return list(running.values())
            for future in done:
                yield running.pop(future), future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(start: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers in order
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start()


def _end_with_parent() -> None:
    """Do not outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
