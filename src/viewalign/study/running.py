"""A study run cell by cell: each has a folder named by a digest of what it depends on, so that what is done stays."""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.recipes import loading as recipes
from viewalign.recipes.unread import unread
from viewalign.study import labelled as labels
from viewalign.study.digests import digest_of
from viewalign.study.labelled import Labelled
from viewalign.study.loading import flatten
from viewalign.study.segmenting import Segmenting
from viewalign.study.settings import PlaceJudge, SegmentationJudge, SourceSettings, Study, VoxelJudge
from viewalign.training.run import pretrain
from viewalign.transfer.encoder import Encoder, build_untrained, load_encoder
from viewalign.transfer.probe import Case, ProbeSettings, probe
from viewalign.transfer.retrieval import find_places
from viewalign.transfer.voxel_features import EncoderFeatures
from viewalign.volumes.catalogue import write_catalogue
from viewalign.volumes.indexing import index_sources
from viewalign.volumes.prepare import prepare_catalogue
from viewalign.volumes.recipe import PrepareSettings
from viewalign.volumes.store import Store
from viewalign.writing import whole

FILE, RUN = "cell.json", "run"


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
        self.labelled = self._labelled(root)
        self.recipes = {(arm, seed): self._recipe(arm, seed) for arm in study.arms for seed in study.seeds}
        self._check_common()
        for name, judge in study.judges.items():
            if not isinstance(judge, VoxelJudge | PlaceJudge | SegmentationJudge):
                raise UserError(f"judges.{name}: the kind {judge.kind} cannot be run by a study yet.")
            if isinstance(judge, VoxelJudge):
                self.labelled.shots(judge.shots, judge.draw, 0)
            if isinstance(judge, SegmentationJudge):
                self._check_segmenting(name, judge)
        source = study.data.source
        self.store_path = root / (study.data.store or "") if source is None else _prepared(source, root, out)
        self.store = Store.open(self.store_path)
        self.cells = list(self._cells())

    def _check_segmenting(self, name: str, judge: SegmentationJudge) -> None:
        data = self.study.data
        if data.source is None:
            preparation = Store.open(Path(data.root) / (data.store or "")).recipe
        else:
            preparation = PrepareSettings.model_validate(data.source.prepare).model_dump(mode="json")
        recipes = [self.recipes[arm, self.study.seeds[0]] for arm in self.study.arms]
        try:
            Segmenting(judge, self.labelled, preparation, self.out, self.study.threads).check(recipes)
        except UserError as problem:
            raise UserError(f"judges.{name}: {problem}") from None

    def _labelled(self, root: Path) -> Labelled:
        asked = self.study.data.labelled
        if asked is None or asked.images is None or asked.labels is None:
            raise UserError("A study takes labelled images from two folders so far: data.labelled.images and .labels.")
        found = labels.in_folders(labels.first_there(root, asked.images), labels.first_there(root, asked.labels))
        learn = labels.matching(found, asked.learn, "data.labelled.learn")
        test = labels.matching(found, asked.test, "data.labelled.test")
        both = {case.name for case in learn} & {case.name for case in test}
        if both or not learn or not test:
            raise UserError(f"data.labelled: learn and test must name different cases, not both {sorted(both)[:3]}.")
        return Labelled(learn, test, dict(asked.classes))

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
        @cache
        def trained(arm: str, seed: int) -> Cell:
            one = self.study.arms[arm]
            start = trained(one.start, seed) if one.start else None
            told = self.recipes[arm, seed].model_dump(mode="json", by_alias=True)
            for key in ("data", "out", "log", "checkpoint"):
                del told[key]
            told["runtime"] = told["runtime"]["precision"]
            index = hashlib.sha256((self.store_path / "index.json").read_bytes()).hexdigest()
            digest = digest_of([told, one.untrained, index, start.folder.name if start else None])
            name = f"pretrain/{arm}/{seed}"
            return Cell(name, self.out / "cells" / name / digest, arm, seed, None, start)

        pairs = [(arm, seed) for seed in self.study.seeds for arm in self.study.arms]
        depth = {arm: len(_chain(self.study, arm)) for arm in self.study.arms}
        yield from (trained(arm, seed) for arm, seed in sorted(pairs, key=lambda pair: depth[pair[0]]))
        files = [[case.identity for case in group] for group in (self.labelled.learn, self.labelled.test)]
        for judge, settings in self.study.judges.items():
            for arm, seed in pairs:
                before, name = trained(arm, seed), f"judge/{judge}/{arm}/{seed}"
                told = settings.model_dump(mode="json", exclude={"keep"})
                classes = [self.labelled.classes] if isinstance(settings, SegmentationJudge) else []
                digest = digest_of([told, files, before.folder.name, *classes])
                yield Cell(name, self.out / "cells" / name / digest, arm, seed, judge, before)

    def run(self, cell: Cell) -> int | None:
        """Do a cell; a fault is written down and does not end the study.

        Returns:
            An exit code if a signal came before its end.
        """
        cell.folder.mkdir(parents=True, exist_ok=True)
        try:
            if cell.judge is None:
                code = self._pretrain(cell)
                if code is not None:
                    return code
            told = {"measures": {}} if cell.judge is None else self._judge(cell)
        except Exception as fault:
            (cell.folder / "error.txt").write_text(traceback.format_exc())
            _write(cell.folder / FILE, {"status": "failed", "error": str(fault) or type(fault).__name__})
            return None
        _write(cell.folder / FILE, {"status": "done", **told})
        return None

    def _pretrain(self, cell: Cell) -> int | None:
        if self.study.arms[cell.arm].untrained:
            return None
        run = cell.folder / RUN
        if run.is_dir() and not (run / "config.yaml").is_file():
            shutil.rmtree(run)  # killed before it had begun
        extra: dict[str, Any] = {"data": str(self.store_path), "out": str(run)}
        recipe = self.recipes[cell.arm, cell.seed].model_copy(update=extra)
        if cell.needs is not None:
            start = recipe.init.model_copy(update={"weights": str(cell.needs.folder / RUN)})
            recipe = recipe.model_copy(update={"init": start})
        outcome = pretrain(recipe, resume="auto")
        return None if outcome.finished else outcome.exit_code

    def _encoder(self, cell: Cell) -> Encoder:
        assert cell.needs is not None
        if self.study.arms[cell.arm].untrained:
            return build_untrained(self.recipes[cell.arm, cell.seed], cell.seed)
        return load_encoder(cell.needs.folder / RUN)

    def _judge(self, cell: Cell) -> dict[str, Any]:
        judge = self.study.judges[cell.judge or ""]
        if isinstance(judge, SegmentationJudge):
            assert cell.needs is not None
            run = None if self.study.arms[cell.arm].untrained else cell.needs.folder / RUN
            shared = Segmenting(judge, self.labelled, self.store.recipe, self.out, self.study.threads)
            return shared.judge_cell(cell.folder, run, self.recipes[cell.arm, cell.seed], cell.seed)
        encoder = self._encoder(cell)
        if self.study.threads:
            torch.set_num_threads(self.study.threads)
        test = [self._case(one) for one in self.labelled.test]
        if isinstance(judge, VoxelJudge):
            learn = [self._case(one) for one in self.labelled.shots(judge.shots, judge.draw, cell.seed)]
            settings = ProbeSettings(0, judge.per_class, judge.test_voxels)
            score = probe(EncoderFeatures(encoder), learn, test, settings)
            each = {case.name: {"dice": value} for case, value in zip(test, score.cases, strict=True)}
            return {"measures": {"dice": score.dice, "balanced_accuracy": score.balanced_accuracy}, "cases": each}
        assert isinstance(judge, PlaceJudge)
        places = find_places(encoder, [case.image for case in test], seed=1, cells=judge.cells)
        return {"measures": {"hit": mean(places.hits), "distance": mean(places.distances)}}

    def _case(self, one: labels.LabelledCase) -> Case:
        return labels.read_case(one, PrepareSettings.model_validate(self.store.recipe))


def run_study(grid: Grid, say: Callable[[str], None], go_on: Callable[[], bool] = lambda: True) -> int:
    """Do all cells that are not done; 0 if all are, 3 if some failed, 4 if stopped by `go_on`, else a signal's code."""
    for number, cell in enumerate(grid.cells, start=1):
        if cell.done or (cell.needs is not None and cell.needs.record.get("status") == "failed"):
            continue
        if not go_on():
            return 4
        code = grid.run(cell)
        if code is not None:
            return code
        say(f"[{number}/{len(grid.cells)}] {cell.name}: {cell.record.get('error') or cell.record.get('measures')}")
    open_ = [cell for cell in grid.cells if not cell.done]
    for cell in open_:
        say(f"not done: {cell.name}: {cell.record.get('error', 'what it needs failed')}")
    return 3 if open_ else 0


def _prepared(source: SourceSettings, root: Path, out: Path) -> Path:
    """Prepare the images to pretrain on, or what is missing of them, and return the store."""
    folder = labels.first_there(root, source.folder)
    patterns = [str(folder / pattern) for pattern in source.only] or [str(folder)]
    index = index_sources(patterns)
    files = [[path.name, path.stat().st_size] for pattern in source.only or ["*"] for path in folder.glob(pattern)]
    place = out / "data" / digest_of([source.prepare, sorted(files)])
    if not (place / "store" / "index.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        write_catalogue(index.collection, place / "catalogue.json")
        settings = PrepareSettings.model_validate(source.prepare)
        prepare_catalogue(place / "catalogue.json", place / "store", settings)
    return place / "store"


def _chain(study: Study, arm: str | None) -> list[str]:
    return [] if arm is None else [arm, *_chain(study, study.arms[arm].start)]


def _write(path: Path, told: dict[str, Any]) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(told, indent=1) + "\n")
