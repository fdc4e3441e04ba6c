from __future__ import annotations

from viewalign.volumes.pool import Crashed, run_jobs

# `eval` is a function that every process can import; its jobs are expressions.
DIE = "__import__('os')._exit(3)"


def test_results_come_with_their_jobs() -> None:
    jobs = [f"{n} * {n}" for n in range(10)]
    assert dict(run_jobs(eval, jobs, workers=2)) == {f"{n} * {n}": n * n for n in range(10)}


def test_no_workers_means_this_process() -> None:
    assert list(run_jobs(eval, ["1 + 1"], workers=0)) == [("1 + 1", 2)]


def test_a_dying_worker_takes_only_its_job() -> None:
    jobs = ["1", DIE, "2", "3", DIE + " or 1", "4", "5", "6"]
    results = dict(run_jobs(eval, jobs, workers=2))
    assert {job for job, result in results.items() if isinstance(result, Crashed)} == {DIE, DIE + " or 1"}
    assert {job: result for job, result in results.items() if not isinstance(result, Crashed)} == {
        str(n): n for n in range(1, 7)
    }


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
