"""Evaluate a pretrained encoder in a study; settings are checked before anything runs."""

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
from viewalign.data.fingerprint import content_digest
from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError, os_reason
from viewalign.evaluation import linear_probe
from viewalign.evaluation.embedding import embed
from viewalign.evaluation.encoders import check_installed, encoder_and_preprocessor
from viewalign.evaluation.predictions import read_predictions
from viewalign.evaluation.probe import evaluation_folds, usable_cases
from viewalign.evaluation.retrieval import evaluate_retrieval
from viewalign.evaluation.voxel_features import EncoderFeatures
from viewalign.evaluation.voxel_probe import Case, VoxelProbeSettings, probe
from viewalign.finetuning.classification.finetune import finetune
from viewalign.finetuning.classification.settings import load_training
from viewalign.finetuning.segmentation.encoders import write_untrained
from viewalign.studies.external import ExternalEncoder
from viewalign.studies.labelled import Labelled, LabelledCase, read_case
from viewalign.studies.segmentation import SegmentationEvaluator
from viewalign.studies.settings import (
    Evaluation,
    FeatureProbeEvaluation,
    FinetuneEvaluation,
    RetrievalEvaluation,
    SegmentationEvaluation,
    Study,
    VoxelProbeEvaluation,
    digest_of,
    without_machine,
)
from viewalign.tasks.manifest import TaskCase, read_manifest, write_manifest
from viewalign.tasks.spec import TaskSpec, read_spec, write_spec
from viewalign.utils.precision import choose_device
from viewalign.utils.text import counted
from viewalign.weights.encoder import Encoder, build_untrained, load_encoder

_DRAWS = 100
"""Bootstrap samples of a single probe, whose own intervals are not used."""
_FOLDS_SEED = 0
"""All arms and seeds have the same folds."""


@dataclass(frozen=True)
class Evaluator:
    """All evaluations of a study.

    Attributes:
        study: its settings.
        labelled: labelled cases, if there are any.
        preparation: preprocessing of the pretraining images.
        out: the study's folder.
    """

    study: Study
    labelled: Labelled | None
    preparation: Mapping[str, Any]
    out: Path

    def check(self, recipes: Sequence[Recipe], external: Sequence[ExternalEncoder] = ()) -> None:
        """Check the settings of all evaluations.

        Args:
            recipes: one of every arm that is pretrained or untrained.
            external: encoders of the other arms.

        Raises:
            UserError: an invalid setting, with the name of the evaluation.
        """
        for name in self.study.evaluations:
            settings = self.study.evaluation(name)
            self._check(settings, recipes, external, f"evaluations.{name}")
            for arm in self.study.arms:
                own = self.study.evaluation(name, arm)
                if own != settings:
                    self._check(own, recipes, external, f"evaluations.{name} with arms.{arm}.finetune")

    def _check(
        self, settings: Evaluation, recipes: Sequence[Recipe], external: Sequence[ExternalEncoder], where: str
    ) -> None:
        try:
            if isinstance(settings, VoxelProbeEvaluation):
                self._cases.shots(settings.shots, settings.draw, 0)
            elif not isinstance(settings, RetrievalEvaluation):
                self._evaluator(settings).check(recipes, external)
        except UserError as problem:
            raise UserError(f"{where}: {problem}") from None

    def settings_of(self, name: str, arm: str) -> dict[str, Any]:
        """Return the settings of an evaluation on which its results depend."""
        settings = self.study.evaluation(name, arm)
        values = settings.model_dump(mode="json", exclude={"keep"})
        if isinstance(settings, SegmentationEvaluation | FinetuneEvaluation):
            values["settings"] = without_machine(values["settings"])
        if isinstance(settings, FinetuneEvaluation) and settings.recipe is not None:
            values["recipe"] = without_machine(load_training(settings.recipe).model_dump(mode="json"))
        if isinstance(settings, FeatureProbeEvaluation | FinetuneEvaluation):
            values = {key: value for key, value in values.items() if (key, value) != ("shots", None)} | {"task": None}
        return values

    def data_of(self, name: str) -> list[Any]:
        """Return plain values that identify the data of an evaluation."""
        settings = self.study.evaluations[name]
        if isinstance(settings, FeatureProbeEvaluation | FinetuneEvaluation):
            return [self._task_evaluator(settings).identity()]
        if isinstance(settings, RetrievalEvaluation):
            return [content_digest(case.image) for case in self._cases.test]
        files = [[case.identity for case in group] for group in (self._cases.learn, self._cases.test)]
        classes = [self._cases.classes] if isinstance(settings, SegmentationEvaluation) else []
        patient = [self._cases.patient] if self._cases.patient is not None else []  # by which shots are drawn
        return [files, *classes, *patient]

    def preparation_of(self, name: str) -> list[str]:
        """Return the preprocessing of an evaluation's images, if it is that of the study's store for all encoders."""
        if isinstance(self.study.evaluations[name], VoxelProbeEvaluation | RetrievalEvaluation):
            return [PrepareSettings.model_validate(self.preparation).fingerprint()]
        return []

    def evaluate(
        self,
        name: str,
        arm: str,
        folder: Path,
        run: Path | None,
        recipe: Recipe,
        seed: int,
        external: ExternalEncoder | None = None,
    ) -> dict[str, Any]:
        """Evaluate an encoder.

        Args:
            name: of the evaluation.
            arm: of the study.
            folder: of the cell.
            run: folder of the pretraining; None for the untrained network.
            recipe: of the pretraining.
            seed: of the evaluation.
            external: an encoder to evaluate instead of `run`.

        Returns:
            `measures`, and `cases` with the values or `predicted` with the predictions of each case, if there are any.

        Raises:
            UserError: the encoder cannot be evaluated.
        """
        settings = self.study.evaluation(name, arm)
        if self.study.threads:
            torch.set_num_threads(self.study.threads)
        if not isinstance(settings, VoxelProbeEvaluation | RetrievalEvaluation):
            return self._evaluator(settings).evaluate(folder, run, recipe, external, seed)
        path = external.path if external else run
        encoder = build_untrained(recipe, seed) if path is None else load_encoder(path)
        if isinstance(settings, VoxelProbeEvaluation):
            return self._probe_voxels(settings, encoder, seed)
        return self._retrieve(settings, encoder)

    @property
    def _cases(self) -> Labelled:
        if self.labelled is None:
            raise UserError("it needs labelled images: name them in data.labelled")
        return self.labelled

    def _evaluator(
        self, settings: SegmentationEvaluation | FeatureProbeEvaluation | FinetuneEvaluation
    ) -> SegmentationEvaluator | TaskEvaluator:
        if isinstance(settings, SegmentationEvaluation):
            machine = self.study.threads, self.study.device
            return SegmentationEvaluator(settings, self._cases, self.preparation, self.out, *machine)
        return self._task_evaluator(settings)

    def _task_evaluator(self, settings: FeatureProbeEvaluation | FinetuneEvaluation) -> TaskEvaluator:
        task = Path(self.study.data.root) / settings.task
        return TaskEvaluator(settings, task, self.preparation, self.out, self.study.device)

    def _probe_voxels(self, evaluation: VoxelProbeEvaluation, encoder: Encoder, seed: int) -> dict[str, Any]:
        test = self._read(self._cases.test)
        learn = self._read(self._cases.shots(evaluation.shots, evaluation.draw, seed))
        settings = VoxelProbeSettings(0, evaluation.per_class, evaluation.test_voxels)
        score = probe(EncoderFeatures(encoder, choose_device(self.study.device)), learn, test, settings)
        cases = {case.name: {"dice": value} for case, value in zip(test, score.cases, strict=True)}
        return {"measures": {"dice": score.dice, "balanced_accuracy": score.balanced_accuracy}, "cases": cases}

    def _retrieve(self, evaluation: RetrievalEvaluation, encoder: Encoder) -> dict[str, Any]:
        images = [case.image for case in self._read(self._cases.test)]
        device = choose_device(self.study.device)
        result = evaluate_retrieval(encoder, images, seed=1, cells=evaluation.cells, device=device)
        distance = mean(result.distances)
        # Points of smaller views are closer, so arms with different view sizes are comparable only by the ratio.
        relative = distance / mean(result.chance)
        return {"measures": {"hit": mean(result.hits), "distance": distance, "relative_distance": relative}}

    def _read(self, cases: Sequence[LabelledCase]) -> list[Case]:
        settings = PrepareSettings.model_validate(self.preparation)
        return [read_case(case, settings, self.out / "data" / "cases") for case in cases]


@dataclass(frozen=True)
class TaskEvaluator:
    """Evaluates encoders on a task, by a probe of frozen features or by fine-tuning.

    Attributes:
        settings: of the evaluation.
        task: the task's folder or its YAML file.
        preparation: of the pretraining store.
        out: the study's folder.
        device: where encoders run: auto, cuda or cpu.
    """

    settings: FeatureProbeEvaluation | FinetuneEvaluation
    task: Path
    preparation: Mapping[str, Any]
    out: Path
    device: str

    def check(self, recipes: Sequence[Recipe], external: Sequence[ExternalEncoder]) -> None:  # noqa: ARG002
        """Check task and settings.

        Args:
            recipes: one of every arm that is pretrained or untrained.
            external: encoders of the other arms, whose first convolution is adapted to the task's channels.

        Raises:
            UserError: an invalid task or setting.
        """
        check_installed()
        spec = read_spec(self.task)
        cases = read_manifest(self.task, spec)
        for recipe in recipes:
            if recipe.network.channels not in (1, len(spec.channels)):
                raise UserError(
                    f"{spec.name} has {counted(len(spec.channels), 'channel')}, "
                    f"the pretrained network {recipe.network.channels}"
                )
        if self.settings.shots is not None:
            if not any(case.split == "test" for case in cases):
                raise UserError("shots needs test cases: set the split `test` for some cases of the manifest")
            cases = _few(cases, spec, self.settings.shots, 0)
        if isinstance(self.settings, FeatureProbeEvaluation):
            evaluation_folds(cases, spec, self.settings.folds, _FOLDS_SEED)
            return
        if "seed" in self.settings.settings:
            raise UserError("settings.seed is set by the study")
        load_training(self.settings.recipe, self.settings.settings)

    def identity(self) -> list[Any]:
        """Return plain values that identify the task and its files."""
        spec = read_spec(self.task)
        cases = read_manifest(self.task, spec)
        rows = [[c.case, c.subject, c.site, str(c.target), c.split, c.fold, sorted(c.groups.items())] for c in cases]
        try:
            files = [{**case.images, **({"mask": case.mask} if case.mask else {})} for case in cases]
            digests = [[content_digest(path) for _, path in sorted(each.items())] for each in files]
        except OSError as problem:
            raise UserError(f"{problem.filename} of {self.task} cannot be read: {os_reason(problem)}.") from None
        return [spec.model_dump(mode="json"), rows, digests]

    def evaluate(
        self, folder: Path, run: Path | None, recipe: Recipe, external: ExternalEncoder | None, seed: int
    ) -> dict[str, Any]:
        """Evaluate one encoder; see `Evaluator.evaluate`."""
        untrained = folder / "untrained.pth"
        path = external.path if external else run or write_untrained(recipe, self.preparation, untrained)
        depends = [self.identity(), dict(self.preparation), recipe.views.patch_size, external and external.digest]
        cache = self.out / "data" / f"task-{digest_of(depends)}"
        try:
            if isinstance(self.settings, FeatureProbeEvaluation):
                return self._probe(self.settings, str(path), cache, seed)
            return self._finetune(self.settings, folder, str(path), cache, seed)
        finally:
            untrained.unlink(missing_ok=True)

    def _probe(self, settings: FeatureProbeEvaluation, encoder: str, cache: Path, seed: int) -> dict[str, Any]:
        spec = read_spec(self.task)
        backbone, preprocessor = encoder_and_preprocessor(
            encoder, spec, None, "pretraining", "multistage", channels=settings.channels
        )
        cases = read_manifest(self.task, spec)
        embeddings = embed(backbone, preprocessor, cases, device=self.device, cache=cache)
        usable = usable_cases(cases, embeddings.fingerprints, embeddings.excluded)
        learnt = usable if settings.shots is None else _few(usable, spec, settings.shots, seed)
        folds = evaluation_folds(learnt, spec, settings.folds, _FOLDS_SEED)
        score = linear_probe.probe(embeddings.features, usable, folds, spec, settings.learner, _DRAWS, _FOLDS_SEED)
        predicted = dict(zip(score.cases, score.predicted.tolist(), strict=True))
        return _result(score.values, predicted, embeddings.excluded)

    def _finetune(
        self, settings: FinetuneEvaluation, folder: Path, encoder: str, cache: Path, seed: int
    ) -> dict[str, Any]:
        training = load_training(settings.recipe, {"device": self.device, **settings.settings, "seed": seed})
        task, out = self.task, folder / "tuning"
        if settings.shots is not None:
            spec = read_spec(self.task)
            task = folder / "task"
            write_manifest(_few(read_manifest(self.task, spec), spec, settings.shots, seed), spec, task)
            write_spec(spec, task)
        _, excluded = finetune(task, encoder, out, training, cache=cache)
        metrics = json.loads((out / "metrics.json").read_text())
        has_test = "test" in metrics
        predictions = read_predictions(out).of_folds(test=has_test)
        if not settings.keep:
            for fold in out.glob("fold_*"):
                shutil.rmtree(fold)
        predicted = dict(zip(predictions.cases, predictions.predicted.tolist(), strict=True))
        return _result(metrics["test" if has_test else "held_out"]["values"], predicted, excluded)


def _few(cases: Sequence[TaskCase], spec: TaskSpec, shots: int, seed: int) -> list[TaskCase]:
    """Return sampled training cases and all test cases."""
    training = [case for case in cases if case.split == "train"]
    chosen = {training[k].case for k in linear_probe.draw_shots(training, spec, shots, (seed, shots))}
    return [case for case in cases if case.split == "test" or case.case in chosen]


def _result(
    values: Mapping[str, float], predicted: Mapping[str, Any], excluded: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    measures = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    more = {"excluded": [list(pair) for pair in excluded]} if excluded else {}
    return {"measures": measures, "predicted": dict(predicted), **more}
