"""Dividing a study over processes: whole chains of pretraining and judges, so that no job waits for another."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from viewalign.errors import UserError
from viewalign.study.grid import Cell
from viewalign.study.settings import Study

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-{count}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={cores}
{gpu}#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --output={logs}
# Each of the {count} tasks does an arm (with those that start from it) and a seed, judges included. It goes on where it
# was stopped: five minutes before its time is over it saves and queues itself again. Adapt time, cores, memory and
# partition to your cluster; the study is the same whatever they are.

again() {{
    kill -TERM "$!" && wait "$!"
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
    exit 0
}}
trap again USR1

{command} --job "${{SLURM_ARRAY_TASK_ID}}/{count}" &
wait "$!"
"""


def chains(study: Study) -> list[tuple[str, int]]:
    """Return (arm, seed) of every chain: an arm that starts from no other, with all that start from it.

    The longest come first, so that shares which take every n-th are alike.
    """
    roots = Counter(study.chain(arm)[-1] for arm in study.arms if not study.arms[arm].untrained)
    roots.update(dict.fromkeys((arm for arm, one in study.arms.items() if one.untrained), 0))
    return [(arm, seed) for arm, _ in roots.most_common() for seed in study.seeds]


def share(study: Study, cells: Sequence[Cell], job: str) -> list[Cell]:
    """Return the cells of job `i/n`: every n-th chain, from the i-th on.

    Raises:
        UserError: it is no share.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", job.strip())
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--job {job}: write i/n with i from 1 to n, such as 2/8.")
    mine = set(chains(study)[number - 1 :: count])
    return [cell for cell in cells if (study.chain(cell.arm)[-1], cell.seed) in mine]


def only(cells: Sequence[Cell], pattern: str) -> list[Cell]:
    """Return the cells whose names fit a pattern, and those that they need.

    Raises:
        UserError: none fits.
    """
    wanted: set[str] = set()
    for cell in cells:
        step: Cell | None = cell if fnmatchcase(cell.name, pattern) else None
        while step is not None:
            wanted.add(step.name)
            step = step.needs
    if not wanted:
        raise UserError(f"--only {pattern}: no cell is called so; they are like {cells[-1].name}. See --dry-run.")
    return [cell for cell in cells if cell.name in wanted]


def slurm_script(study: Study, command: Sequence[str], logs: str) -> str:
    """Write a SLURM array with a task for each chain.

    Args:
        study: the study.
        command: what runs it, without `--job`.
        logs: pattern of the files that SLURM writes.
    """
    gpu = "" if study.device == "cpu" else "#SBATCH --gres=gpu:1\n"
    return _SCRIPT.format(
        name=study.name,
        count=len(chains(study)),
        cores=study.threads or 8,
        gpu=gpu,
        logs=logs,
        command=shlex.join(command),
    )
