"""What a study has to do: a cell for every pretraining and every judge's verdict, each with a folder of its own.

A folder is named by a digest of all that its cell depends on, so that what is done stays and what changed is done anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from viewalign.config import Recipe
from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.recipes import loading as recipes
from viewalign.recipes.unused import unread
from viewalign.studies import evaluators
from viewalign.studies.labelled import Labelled, prepared_store, read_labelled, will_be_prepared
from viewalign.studies.loading import flatten
from viewalign.studies.settings import Study, digest_of

FILE = "cell.json"


@dataclass(frozen=True)
class Cell:
    """One piece of work: an arm's pretraining with a seed, or a judge's verdict on it.

    Attributes:
        name: `pretrain/ARM/SEED` or `judge/JUDGE/ARM/SEED`.
        folder: what it leaves; the last part is the digest of all it depends on.
        arm, seed, judge: of whom; the judge is None for a pretraining.
        needs: the pretraining that must be done before.
    """

    name: str
    folder: Path
    arm: str
    seed: int
    judge: str | None
    needs: Cell | None

    @property
    def record(self) -> dict[str, Any]:
        """What it came to; empty before."""
        file = self.folder / FILE
        told: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        return told

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.record.get("status") == "done"


class Grid:
    """All cells of a study whose data are there.

    Raises:
        UserError: anything that does not fit; nothing has been run then.
    """

    def __init__(self, study: Study, out: Path) -> None:
        self.study, self.out = study, out
        root = Path(study.data.root)
        self.labelled: Labelled | None = (
            None if study.data.labelled is None else read_labelled(study.data.labelled, root)
        )
        self.recipes = {(arm, seed): self._recipe(arm, seed) for arm in study.arms for seed in study.seeds}
        self._check_common()
        bench = evaluators.Evaluator(study, self.labelled, will_be_prepared(study.data, root), out)
        bench.check([self.recipes[arm, study.seeds[0]] for arm in study.arms])
        self.store_path = prepared_store(study.data, root, out)
        self.store = Store.open(self.store_path)
        self.bench = evaluators.Evaluator(study, self.labelled, self.store.recipe, out)
        self.cells = list(self._cells())

    def _recipe(self, arm: str, seed: int) -> Recipe:
        study, one = self.study, self.study.arms[arm]
        own = [f"runtime.precision={study.precision}", f"runtime.threads={study.threads}"]
        own += [f"runtime.device={study.device}", *([f"steps={study.steps}"] if study.steps else [])]
        settings = [*own, *flatten(one.settings), f"seed={seed}"]
        return recipes.load(one.recipe, settings, common=list(flatten(study.common)))

    def _check_common(self) -> None:
        """Refuse common settings that no arm reads; an arm that does not read one that others do is as it would be."""
        arms = [unread(recipe) for recipe in self.recipes.values()]
        for setting in flatten(self.study.common):
            key = setting.partition("=")[0]
            if all(key in idle for idle in arms):
                raise UserError(f"common: {key} changes nothing in any arm: {arms[0][key]}.")

    def _cells(self) -> Iterator[Cell]:
        index = hashlib.sha256((self.store_path / "index.json").read_bytes()).hexdigest()

        @cache
        def trained(arm: str, seed: int) -> Cell:
            one = self.study.arms[arm]
            start = trained(one.start, seed) if one.start else None
            told = self.recipes[arm, seed].model_dump(mode="json", by_alias=True)
            for key in ("data", "out", "log", "checkpoint"):
                del told[key]
            told["runtime"] = told["runtime"]["precision"]
            digest = digest_of([told, one.untrained, index, start.folder.name if start else None])
            name = f"pretrain/{arm}/{seed}"
            return Cell(name, self.out / "cells" / name / digest, arm, seed, None, start)

        pairs = [(arm, seed) for seed in self.study.seeds for arm in self.study.arms]
        yield from (trained(arm, seed) for arm, seed in sorted(pairs, key=lambda pair: len(self.study.chain(pair[0]))))
        for judge in self.study.judges:
            depends = self.bench.depends_on(judge)
            for arm, seed in pairs:
                before, name = trained(arm, seed), f"judge/{judge}/{arm}/{seed}"
                digest = digest_of([*depends[:2], before.folder.name, *depends[2:]])
                yield Cell(name, self.out / "cells" / name / digest, arm, seed, judge, before)


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

{command} "shard=${{SLURM_ARRAY_TASK_ID}}/{count}" &
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
    """Return the cells of shard `i/n`: every n-th chain, from the i-th on.

    Raises:
        UserError: it is no share.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", job.strip())
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"shard={job}: write i/n with i from 1 to n, such as 2/8.")
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
        command: what runs it, without `shard`.
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
