"""The cells of a study: one pretraining per arm and seed, and one evaluation of each.

A cell's folder is named by a hash of everything that its result depends on, so that only changed cells are run again.
"""

from __future__ import annotations

import hashlib
import json
import math
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
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store
from viewalign.errors import UserError
from viewalign.recipes import loading as recipes
from viewalign.recipes.unused import unread
from viewalign.studies.evaluators import Evaluator
from viewalign.studies.external import initial_digest, read_external
from viewalign.studies.labelled import planned_preparation, prepared_store, read_labelled
from viewalign.studies.loading import flatten
from viewalign.studies.settings import Study, digest_of

FILE = "cell.json"


@dataclass(frozen=True)
class Cell:
    """The pretraining of an arm with a seed, or an evaluation of it.

    Attributes:
        name: `pretrain/ARM/SEED` or `evaluate/EVALUATION/ARM/SEED`.
        folder: of its files; the last part is the hash of everything that its result depends on.
        arm, seed: of the pretraining.
        evaluation: its name; None for a pretraining.
        needs: the pretraining that must be finished first.
    """

    name: str
    folder: Path
    arm: str
    seed: int
    evaluation: str | None
    needs: Cell | None

    @property
    def record(self) -> dict[str, Any]:
        """Its result, with NaN for measures that are not defined (null in the file); empty before it was run."""
        file = self.folder / FILE
        record: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        for measures in (record.get("measures", {}), *record.get("cases", {}).values()):
            measures.update({name: math.nan for name, value in measures.items() if value is None})
        return record

    @property
    def done(self) -> bool:
        """Whether it is complete."""
        return self.record.get("status") == "done"


class Grid:
    """All cells of a study.

    Args:
        study: its settings.
        out: the study's folder.
        prepare: whether to prepare images that are not prepared yet; without, nothing is written, and no cell of
            a pretrained arm can be done as long as there is no store.

    Raises:
        UserError: missing data or invalid settings, before anything is run.
    """

    def __init__(self, study: Study, out: Path, prepare: bool = True) -> None:
        self.study, self.out = study, out
        root = Path(study.data.root)
        self.labelled = None if study.data.labelled is None else read_labelled(study.data.labelled, root)
        self.recipes = {(arm, seed): self._recipe(arm, seed) for arm in study.arms for seed in study.seeds}
        self._check_common()
        checked = Evaluator(study, self.labelled, planned_preparation(study.data, root), out)
        self.external = {name: read_external(a.encoder, root) for name, a in study.arms.items() if a.encoder}
        own = [self.recipes[arm, study.seeds[0]] for arm in study.arms if arm not in self.external]
        checked.check(own, list(self.external.values()))
        self._initial_digest = cache(initial_digest)  # reads the weights, which all seeds share
        self.store_path = prepared_store(study.data, root, out, prepare)
        index = self.store_path / "index.json"
        there = prepare or index.is_file()
        self.evaluator = Evaluator(study, self.labelled, Store.open(self.store_path).recipe, out) if there else checked
        self.cells = list(self._cells(hashlib.sha256(index.read_bytes() if there else b"").hexdigest()))

    def _recipe(self, name: str, seed: int) -> Recipe:
        study, arm = self.study, self.study.arms[name]
        settings = [f"runtime.precision={study.precision}", f"runtime.threads={study.threads}"]
        settings += [f"runtime.device={study.device}", *([f"steps={study.steps}"] if study.steps else [])]
        settings += [*flatten(arm.settings), f"seed={seed}"]
        recipe = recipes.load(arm.recipe, settings, common=list(flatten(study.common)))
        if recipe.validate_.probe is not None:
            raise UserError(
                f"arms.{name}: validate.probe is for `viewalign pretrain`; a study has evaluations instead."
            )
        return recipe

    def _check_common(self) -> None:
        """Check that some arm uses each common setting; other arms ignore it."""
        unused = [unread(recipe) for recipe in self.recipes.values()]
        for setting in flatten(self.study.common):
            key = setting.partition("=")[0]
            if all(key in keys for keys in unused):
                raise UserError(f"common: {key} has no effect in any arm: {unused[0][key]}.")

    def _cells(self, index: str) -> Iterator[Cell]:
        """Yield the cells for a store whose index has this digest."""

        @cache
        def pretraining(name: str, seed: int) -> Cell:
            arm = self.study.arms[name]
            start = pretraining(arm.start, self.study.pretraining_seed(arm.start, seed)) if arm.start else None
            if name in self.external:
                return self._cell(f"pretrain/{name}/{seed}", self.external[name].digest, name, seed, None, None)
            depends = self._untrained(name, seed) if arm.untrained else [self._trained(name, seed), False, index]
            depends += [start.folder.name if start else None]
            return self._cell(f"pretrain/{name}/{seed}", depends, name, seed, None, start)

        pairs = [(arm, seed) for seed in self.study.seeds for arm in self.study.arms]
        pretrained = {(arm, self.study.pretraining_seed(arm, seed)): None for arm, seed in pairs}
        for arm, seed in sorted(pretrained, key=lambda pair: len(self.study.chain(pair[0]))):
            yield pretraining(arm, seed)
        for evaluation in self.study.evaluations:
            data = self.evaluator.data_of(evaluation)
            for arm, seed in pairs:
                needs = pretraining(arm, self.study.pretraining_seed(arm, seed))
                depends = [self.evaluator.settings_of(evaluation, arm), data, needs.folder.name]
                if arm in self.external:  # other arms depend on the store's index
                    depends += self.evaluator.preparation_of(evaluation)
                yield self._cell(f"evaluate/{evaluation}/{arm}/{seed}", depends, arm, seed, evaluation, needs)

    def _trained(self, name: str, seed: int) -> dict[str, Any]:
        """Return the settings on which a pretraining depends."""
        recipe = self.recipes[name, seed]
        values = recipe.model_dump(mode="json", by_alias=True)
        for key in ("data", "out", "log", "checkpoint"):
            del values[key]
        values["runtime"] = values["runtime"]["precision"]
        if recipe.init.weights and self.study.arms[name].start is None:
            init = recipe.init
            values["init"]["weights"] = self._initial_digest(init.weights, recipe.network.name, init.token_order)
        return values

    def _untrained(self, name: str, seed: int) -> list[Any]:
        """Return what an untrained network and its evaluations depend on."""
        recipe = self.recipes[name, seed]
        network = [recipe.network.name, recipe.network.channels, recipe.views.patch_size, recipe.masking.block]
        return [*network, seed, PrepareSettings.model_validate(self.evaluator.preparation).fingerprint()]

    def _cell(self, name: str, depends: Any, arm: str, seed: int, evaluation: str | None, needs: Cell | None) -> Cell:
        return Cell(name, self.out / "cells" / name / digest_of(depends), arm, seed, evaluation, needs)


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
# Each of the {count} tasks runs an arm (with those that start from it) for one seed, with its evaluations. Five minutes
# before its time limit it saves and requeues itself, and resumes. Adapt time, cores, memory and partition to your
# cluster; they do not change the results.

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
    """Return (arm, seed) of every chain: an arm that starts from no other arm, with all that start from it.

    The longest are first, so that jobs that take every n-th chain are balanced.
    """
    roots = Counter(study.chain(arm)[-1] for arm in study.arms if not study.arms[arm].untrained)
    roots.update(dict.fromkeys((name for name, arm in study.arms.items() if arm.untrained), 0))
    found = (study.first(arm, seed) for arm, _ in roots.most_common() for seed in study.seeds)
    return list(dict.fromkeys(found))


def share(study: Study, cells: Sequence[Cell], job: str) -> list[Cell]:
    """Return the cells of shard `i/n`: every n-th chain, starting with the i-th.

    Raises:
        UserError: an invalid `job`.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", job.strip())
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"shard={job}: write i/n with i from 1 to n, such as 2/8.")
    mine = set(chains(study)[number - 1 :: count])
    return [cell for cell in cells if study.first(cell.arm, cell.seed) in mine]


def only(cells: Sequence[Cell], pattern: str) -> list[Cell]:
    """Return the cells whose names match a pattern, and those that they depend on.

    Raises:
        UserError: no cell matches.
    """
    wanted: set[str] = set()
    for cell in cells:
        step: Cell | None = cell if fnmatchcase(cell.name, pattern) else None
        while step is not None:
            wanted.add(step.name)
            step = step.needs
    if not wanted:
        raise UserError(f"--only {pattern}: no cell matches; a name is, for example, {cells[-1].name}. See --dry-run.")
    return [cell for cell in cells if cell.name in wanted]


def slurm_script(study: Study, command: Sequence[str], logs: str) -> str:
    """Return a SLURM array script with a task for each chain.

    Args:
        study: the study.
        command: command line that runs it, without `shard`.
        logs: pattern of SLURM's log files.
    """
    gpu = "" if study.device == "cpu" else "#SBATCH --gres=gpu:1\n"
    return _SCRIPT.format(
        name=study.name,
        count=len(chains(study)),
        cores=study.threads or 8,
        gpu=gpu,
        logs=shlex.quote(logs),  # sbatch reads quotes as a shell does
        command=shlex.join(command),
    )
