from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from viewalign.data.worker_pool import SubprocessWorker, WorkerLost, run_jobs

# `eval` is a function that every process can import; its jobs are expressions.
DIE = "__import__('os')._exit(3)"
HANG = "__import__('time').sleep(1000)"


def squares(results) -> bool:
    return dict(results) == {f"{n} * {n}": n * n for n in range(10)}


def test_results_come_with_their_jobs() -> None:
    assert squares(run_jobs(eval, [f"{n} * {n}" for n in range(10)], workers=2))


def test_no_workers_means_this_process() -> None:
    job = "__import__('os').getpid()"
    assert dict(run_jobs(eval, [job], workers=0)) == {job: os.getpid()}


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_will_do(kind) -> None:
    with kind(2) as executor:
        assert squares(run_jobs(eval, [f"{n} * {n}" for n in range(10)], workers=2, executor=executor))


def test_a_dying_worker_takes_only_its_job() -> None:
    jobs = ["1", DIE, "2", "3", DIE + " or 1", "4", "5", "6"]
    results = dict(run_jobs(eval, jobs, workers=2))
    lost = {job: result for job, result in results.items() if isinstance(result, WorkerLost)}
    assert set(lost) == {DIE, DIE + " or 1"}
    assert lost[DIE].reason == "the reader crashed on this file (exit code 3)"
    assert {job: result for job, result in results.items() if job not in lost} == {str(n): n for n in range(1, 7)}


def test_a_job_that_died_among_others_is_tried_once_more_alone(tmp_path) -> None:
    mark = tmp_path / "mark"
    once = f"__import__('pathlib').Path({str(mark)!r}).exists() or [open({str(mark)!r}, 'w'), {DIE}]"
    assert dict(run_jobs(eval, ["1", once, "2"], workers=2)) == {"1": 1, once: True, "2": 2}


def test_a_killed_worker_is_distinguished_from_a_crash() -> None:
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    ((_, result),) = run_jobs(eval, [kill], workers=1)
    assert "lack of memory" in result.reason


@pytest.mark.slow
def test_a_hanging_job_is_ended_and_the_others_continue() -> None:
    begin = time.monotonic()
    results = dict(run_jobs(eval, ["1", HANG, "2", "3"], workers=1, seconds=2.0))
    assert results.pop(HANG) == WorkerLost("it took longer than the time limit of 2 s")
    assert results == {"1": 1, "2": 2, "3": 3}
    assert time.monotonic() - begin < 60


def test_what_a_job_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(eval, ["1 / 0"], workers=1))


def test_jobs_are_not_drawn_far_ahead() -> None:
    drawn = 0

    def jobs():
        nonlocal drawn
        for n in range(50):
            drawn += 1
            yield str(n)

    results = run_jobs(eval, jobs(), workers=1)
    next(results)
    assert drawn <= 4
    results.close()


def test_a_child_does_not_outlive_its_caller() -> None:
    code = (
        "import threading, time\nfrom viewalign.data.worker_pool import SubprocessWorker\nchild = SubprocessWorker()\n"
        "print(child.run(eval, \"__import__('os').getpid()\"), flush=True)\n"
        f'threading.Thread(target=child.run, args=(eval, "{HANG}"), daemon=True).start()\n'
        "time.sleep(0.5)\n__import__('os')._exit(9)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(out.stdout)
    for _ in range(100):
        if not _runs(pid):
            return
        time.sleep(0.1)
    raise AssertionError(f"the child {pid} is still there")


def _runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_lost_child_is_replaced() -> None:
    child = SubprocessWorker()
    assert isinstance(child.run(eval, DIE), WorkerLost)
    assert child.run(eval, "1 + 1") == 2
    child.kill()
