"""Who judges a pretrained encoder, and how: every kind of judge, checked before anything runs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from viewalign.config import Recipe
from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.evaluation import linear_probe
from viewalign.evaluation.embedding import embed
from viewalign.evaluation.encoders import check_installed, encoder_and_preprocessor
from viewalign.evaluation.probe import judged_folds
from viewalign.evaluation.retrieval import find_places
from viewalign.evaluation.voxel_features import EncoderFeatures
from viewalign.evaluation.voxel_probe import Case, VoxelProbeSettings, probe
from viewalign.finetuning.classification.finetune import finetune
from viewalign.finetuning.classification.settings import load_training
from viewalign.finetuning.segmentation.encoders import write_untrained
from viewalign.studies.labelled import Labelled, LabelledCase, read_case
from viewalign.studies.segmentation import SegmentationEvaluator
from viewalign.studies.settings import (
    FeatureProbeEvaluation,
    FinetuneEvaluation,
    RetrievalEvaluation,
    SegmentationEvaluation,
    Study,
    VoxelProbeEvaluation,
    digest_of,
)
from viewalign.tasks.manifest import read_manifest
from viewalign.tasks.spec import read_spec
from viewalign.utils.precision import choose_device
from viewalign.weights.encoder import Encoder, build_untrained, load_encoder


@dataclass(frozen=True)
class Evaluator:
    """All judges of a study.

    Attributes:
        study: its settings.
        labelled: labelled cases, where there are some.
        preparation: how the images of pretraining are prepared.
        out: the study's folder.
    """

    study: Study
    labelled: Labelled | None
    preparation: Mapping[str, Any]
    out: Path

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Check everything about judges that can be known before anything is trained.

        Args:
            recipes: one of every arm.

        Raises:
            UserError: what does not fit, with the judge's name.
        """
        for name, judge in self.study.judges.items():
            try:
                if isinstance(judge, VoxelProbeEvaluation):
                    self._cases.shots(judge.shots, judge.draw, 0)
                elif isinstance(judge, SegmentationEvaluation):
                    self._segmenting(judge).check(recipes)
                elif isinstance(judge, FeatureProbeEvaluation | FinetuneEvaluation):
                    self._on_task(judge).check(recipes)
            except UserError as problem:
                raise UserError(f"judges.{name}: {problem}") from None

    def depends_on(self, name: str) -> list[Any]:
        """Return plain values of all that a judge's verdict depends on beside the encoder."""
        judge = self.study.judges[name]
        told = judge.model_dump(mode="json", exclude={"keep"})
        if isinstance(judge, FeatureProbeEvaluation | FinetuneEvaluation):
            return [{**told, "task": None}, self._on_task(judge).identity()]
        files = [[case.identity for case in group] for group in (self._cases.learn, self._cases.test)]
        classes = [self._cases.classes] if isinstance(judge, SegmentationEvaluation) else []
        return [told, files, *classes]

    def judge(self, name: str, folder: Path, run: Path | None, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Judge an encoder.

        Args:
            name: the judge's.
            folder: the cell's.
            run: of the pretraining; None for the untrained network.
            recipe: of the pretraining.
            seed: of the pretraining.

        Returns:
            `measures`, and where they are known `cases`: values of each case.

        Raises:
            UserError: it cannot be judged.
        """
        judge = self.study.judges[name]
        if self.study.threads:
            torch.set_num_threads(self.study.threads)
        if isinstance(judge, SegmentationEvaluation):
            return self._segmenting(judge).judge_cell(folder, run, recipe, seed)
        if isinstance(judge, FeatureProbeEvaluation | FinetuneEvaluation):
            return self._on_task(judge).judge_cell(folder, run, recipe, seed)
        encoder = build_untrained(recipe, seed) if run is None else load_encoder(run)
        if isinstance(judge, VoxelProbeEvaluation):
            return self._probe_voxels(judge, encoder, seed)
        return self._find_places(judge, encoder)

    @property
    def _cases(self) -> Labelled:
        if self.labelled is None:
            raise UserError("it needs labelled images: name them in data.labelled")
        return self.labelled

    def _segmenting(self, judge: SegmentationEvaluation) -> SegmentationEvaluator:
        return SegmentationEvaluator(judge, self._cases, self.preparation, self.out, self.study.threads)

    def _on_task(self, judge: FeatureProbeEvaluation | FinetuneEvaluation) -> TaskEvaluator:
        return TaskEvaluator(judge, Path(self.study.data.root), self.preparation, self.out, self.study.device)

    def _probe_voxels(self, judge: VoxelProbeEvaluation, encoder: Encoder, seed: int) -> dict[str, Any]:
        test = self._read(self._cases.test)
        learn = self._read(self._cases.shots(judge.shots, judge.draw, seed))
        settings = VoxelProbeSettings(0, judge.per_class, judge.test_voxels)
        score = probe(EncoderFeatures(encoder, choose_device(self.study.device)), learn, test, settings)
        each = {case.name: {"dice": value} for case, value in zip(test, score.cases, strict=True)}
        return {"measures": {"dice": score.dice, "balanced_accuracy": score.balanced_accuracy}, "cases": each}

    def _find_places(self, judge: RetrievalEvaluation, encoder: Encoder) -> dict[str, Any]:
        images = [case.image for case in self._read(self._cases.test)]
        places = find_places(encoder, images, seed=1, cells=judge.cells, device=choose_device(self.study.device))
        distance = mean(places.distances)
        # Smaller views have nearer places, so that arms with views of other sizes compare by the ratio alone.
        relative = distance / mean(places.chance)
        return {"measures": {"hit": mean(places.hits), "distance": distance, "relative_distance": relative}}

    def _read(self, cases: Sequence[LabelledCase]) -> list[Case]:
        settings = PrepareSettings.model_validate(self.preparation)
        return [read_case(case, settings, self.out / "data" / "cases") for case in cases]


_FOLDS_SEED = 0
"""Cases are divided alike for all arms and seeds, so that what differs is the encoder."""


@dataclass(frozen=True)
class TaskEvaluator:
    """What all cells of a judge on a task share.

    Attributes:
        judge: its settings.
        root: what the task's path is relative to.
        preparation: of the store that was pretrained on.
        out: the study's folder.
        device: where encoders run: auto, cuda or cpu.
    """

    judge: FeatureProbeEvaluation | FinetuneEvaluation
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
        if isinstance(self.judge, FinetuneEvaluation):
            if "seed" in self.judge.settings:
                raise UserError("settings.seed is settled by the study itself")
            load_training(self.judge.recipe, self.judge.settings)
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
        cache = (
            self.out / "data" / f"task-{digest_of([self.identity(), dict(self.preparation), recipe.views.patch_size])}"
        )
        try:
            if isinstance(self.judge, FeatureProbeEvaluation):
                return self._probe(self.judge, str(encoder), cache)
            return self._tune(self.judge, folder / "tuning", str(encoder), cache, seed)
        finally:
            fresh.unlink(missing_ok=True)

    def _probe(self, judge: FeatureProbeEvaluation, encoder: str, cache: Path) -> dict[str, Any]:
        spec = read_spec(self.task)
        backbone, preprocessor = encoder_and_preprocessor(encoder, spec, None, "pretraining", "multistage")
        cases = read_manifest(self.task, spec)
        found = embed(backbone, preprocessor, cases, device=self.device, cache=cache)
        usable = [case for case in cases if case.case in set(found.cases)]
        folds = judged_folds(usable, spec, judge.folds, _FOLDS_SEED)
        score = linear_probe.probe(found.features, usable, folds, spec, judge.learner, seed=_FOLDS_SEED)
        return _verdict(score.values, found.excluded)

    def _tune(self, judge: FinetuneEvaluation, folder: Path, encoder: str, cache: Path, seed: int) -> dict[str, Any]:
        training = load_training(judge.recipe, {"device": self.device, **judge.settings, "seed": seed})
        _, excluded = finetune(self.task, encoder, folder, training, lambda _: None, cache=cache)
        told = json.loads((folder / "metrics.json").read_text())
        if not judge.keep:
            for fold in folder.glob("fold_*"):
                shutil.rmtree(fold)
        return _verdict(told["test" if "test" in told else "held_out"]["values"], excluded)


def _verdict(values: Mapping[str, float], excluded: Sequence[tuple[str, str]]) -> dict[str, Any]:
    measures = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return {"measures": measures, **({"excluded": [list(pair) for pair in excluded]} if excluded else {})}
