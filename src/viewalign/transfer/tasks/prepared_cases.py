"""The cases of a task, prepared by several processes ahead of whoever takes them.

A GPU would wait for one process that reads and prepares by itself; and a file that kills or hangs its reader takes only
its own case with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from viewalign.errors import UserError
from viewalign.transfer.tasks.caching import cached
from viewalign.transfer.tasks.manifest import TaskCase
from viewalign.transfer.tasks.preparation import Preprocessor, Sample
from viewalign.volumes.child import Lost
from viewalign.volumes.pool import default_workers, run_jobs

T = TypeVar("T")

_FEW = 16
"""So many cases this process prepares by itself: starting others takes about as long."""
_MOST = 16
"""Processes at most, unless told: each holds a volume or two, and as many wait to be taken."""
_SECONDS = 600.0
"""How long a case may take."""


@dataclass(frozen=True)
class _Job:
    case: TaskCase
    preprocessor: Preprocessor
    cache: Path | None


def prepared(
    cases: Sequence[TaskCase], preprocessor: Preprocessor, cache: Path | None = None, workers: int | None = None
) -> Iterator[tuple[TaskCase, Sample | str]]:
    """Yield each case with its sample, or with the reason why it cannot be used, as they get ready: in any order.

    Args:
        cases: their targets are not looked at.
        preprocessor: of the task.
        cache: folder of prepared cases, see `tasks.caching`; what lies there is mapped, not loaded.
        workers: processes; 0 works in this one, without guard. Default: one a core, and this one for few cases.
    """
    if workers is None:
        workers = 0 if len(cases) <= _FEW else min(default_workers(), _MOST)
    jobs = (_Job(case, preprocessor, cache) for case in cases)
    for job, found in run_jobs(_prepare, jobs, workers, _SECONDS):
        if isinstance(found, Lost):
            yield job.case, found.reason
        elif found is None:
            yield job.case, cached(preprocessor, cache)(job.case.images, job.case.mask)
        else:
            yield job.case, found


def _prepare(job: _Job) -> Sample | str | None:
    """Return a case's sample, why there is none, or None where it lies in the cache now."""
    try:
        sample = cached(job.preprocessor, job.cache)(job.case.images, job.case.mask)
    except UserError as problem:
        return str(problem)
    return None if isinstance(sample.image, np.memmap) else sample


def in_order(cases: Sequence[TaskCase], found: Mapping[str, T | str]) -> tuple[dict[str, T], list[tuple[str, str]]]:
    """Part what came of cases, by name, into results and reasons, both in the order of the cases."""
    told = [(case.case, found[case.case]) for case in cases]
    results = {name: value for name, value in told if not isinstance(value, str)}
    return results, [(name, value) for name, value in told if isinstance(value, str)]


def prepare_cases(
    cases: Sequence[TaskCase],
    preprocessor: Preprocessor,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
    workers: int | None = None,
) -> tuple[dict[str, Sample], list[tuple[str, str]]]:
    """Prepare all cases, in memory or in a cache; returns their samples, and name and reason of each that is refused.

    Args:
        cases, preprocessor, cache, workers: as `prepared` takes them.
        progress: takes how many cases are done and how many there are.
    """
    found: dict[str, Sample | str] = {}
    for number, (case, sample) in enumerate(prepared(cases, preprocessor, cache, workers), 1):
        found[case.case] = sample
        if progress:
            progress(number, len(cases))
    return in_order(cases, found)
