"""Judges on a task with one answer a case: a linear probe or neighbours of its vectors, or a whole fine-tuning."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.study.digests import digest_of
from viewalign.study.settings import FeatureJudge, TunedJudge
from viewalign.transfer import global_probe
from viewalign.transfer.embedding import embed
from viewalign.transfer.segmentation.untrained import write_untrained
from viewalign.transfer.tasks.finetune import finetune
from viewalign.transfer.tasks.manifest import read_manifest
from viewalign.transfer.tasks.probing import judged_folds
from viewalign.transfer.tasks.settings import load_training
from viewalign.transfer.tasks.setup import check_installed, encoder_and_preprocessor
from viewalign.transfer.tasks.spec import read_spec

_FOLDS_SEED = 0
"""Cases are divided alike for all arms and seeds, so that what differs is the encoder."""


@dataclass(frozen=True)
class TaskJudging:
    """What all cells of a judge on a task share.

    Attributes:
        judge: its settings.
        root: what the task's path is relative to.
        preparation: of the store that was pretrained on.
        out: the study's folder.
        device: where encoders run: auto, cuda or cpu.
    """

    judge: FeatureJudge | TunedJudge
    root: Path
    preparation: Mapping[str, Any]
    out: Path
    device: str

    @property
    def task(self) -> Path:
        """The task's folder, or its YAML file."""
        return self.root / self.judge.task

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Check task and settings before anything is trained.

        Args:
            recipes: one of every arm.

        Raises:
            UserError: what does not fit.
        """
        check_installed()
        spec = read_spec(self.task)
        cases = read_manifest(self.task, spec)
        odd = [recipe.network.channels for recipe in recipes if recipe.network.channels not in (1, len(spec.channels))]
        if odd:
            raise UserError(f"{spec.name} has {len(spec.channels)} channels, the pretrained network {odd[0]}")
        if isinstance(self.judge, TunedJudge):
            if "seed" in self.judge.settings:
                raise UserError("settings.seed is settled by the study itself")
            load_training(self.judge.recipe, (), self.judge.settings)
        else:
            judged_folds(cases, spec, self.judge.folds, _FOLDS_SEED)

    def identity(self) -> list[Any]:
        """Return plain values that tell the task and its files from any other."""
        spec = read_spec(self.task)
        cases = read_manifest(self.task, spec)
        files = [[case.case, str(case.target), case.split, case.fold] for case in cases]
        sizes = [[path.stat().st_size for _, path in sorted(case.images.items())] for case in cases]
        return [spec.model_dump(mode="json"), files, sizes]

    def judge_cell(self, folder: Path, run: Path | None, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Judge one encoder; see `Bench.judge`."""
        fresh = folder / "untrained.pth"
        encoder = write_untrained(recipe, self.preparation, fresh) if run is None else run
        cache = self.out / "data" / f"task-{digest_of([self.identity(), dict(self.preparation), recipe.views.size])}"
        try:
            if isinstance(self.judge, FeatureJudge):
                return self._probe(self.judge, str(encoder), cache)
            return self._tune(self.judge, folder / "tuning", str(encoder), cache, seed)
        finally:
            fresh.unlink(missing_ok=True)

    def _probe(self, judge: FeatureJudge, encoder: str, cache: Path) -> dict[str, Any]:
        spec = read_spec(self.task)
        backbone, preprocessor = encoder_and_preprocessor(encoder, spec, None, "pretraining", "multistage")
        cases = read_manifest(self.task, spec)
        found = embed(backbone, preprocessor, cases, device=self.device, cache=cache)
        usable = [case for case in cases if case.case in set(found.cases)]
        folds = judged_folds(usable, spec, judge.folds, _FOLDS_SEED)
        score = global_probe.probe(found.features, usable, folds, spec, judge.learner, seed=_FOLDS_SEED)
        return _verdict(score.values, found.refused)

    def _tune(self, judge: TunedJudge, folder: Path, encoder: str, cache: Path, seed: int) -> dict[str, Any]:
        training = load_training(judge.recipe, (), {"device": self.device, **judge.settings, "seed": seed})
        _, refused = finetune(self.task, encoder, folder, training, lambda _: None, cache=cache)
        told = json.loads((folder / "metrics.json").read_text())
        if not judge.keep:
            for fold in folder.glob("fold_*"):
                shutil.rmtree(fold)
        return _verdict(told["test" if "test" in told else "held_out"]["values"], refused)


def _verdict(values: Mapping[str, float], refused: Sequence[tuple[str, str]]) -> dict[str, Any]:
    measures = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return {"measures": measures, **({"refused": [list(pair) for pair in refused]} if refused else {})}
