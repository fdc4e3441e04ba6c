"""What a study has to do: a cell for every pretraining and every judge's verdict, each with a folder of its own.

A folder is named by a digest of all that its cell depends on, so that what is done stays and what changed is done anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.recipes import loading as recipes
from viewalign.recipes.unread import unread
from viewalign.study import judging
from viewalign.study.digests import digest_of
from viewalign.study.labelled import Labelled, read_labelled
from viewalign.study.loading import flatten
from viewalign.study.preparing import prepared_store, will_be_prepared
from viewalign.study.settings import Study
from viewalign.volumes.store import Store

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
        bench = judging.Bench(study, self.labelled, will_be_prepared(study.data, root), out)
        bench.check([self.recipes[arm, study.seeds[0]] for arm in study.arms])
        self.store_path = prepared_store(study.data, root, out)
        self.store = Store.open(self.store_path)
        self.bench = judging.Bench(study, self.labelled, self.store.recipe, out)
        self.cells = list(self._cells())

    def _recipe(self, arm: str, seed: int) -> Recipe:
        study, one = self.study, self.study.arms[arm]
        own = [f"runtime.precision={study.precision}", f"runtime.threads={study.threads}"]
        own += [f"runtime.accelerator={study.device}", *([f"steps={study.steps}"] if study.steps else [])]
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
