"""Fine-tune an encoder for classification or regression with cross-validation."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation import task_metrics
from viewalign.evaluation.embedding import weights_digest
from viewalign.evaluation.encoders import (
    Pretrained,
    build_encoder,
    compare_channels,
    default_size,
    load_pretrained_pooling,
    read_pretrained,
    with_spacing,
)
from viewalign.evaluation.predictions import PREDICTIONS, write_predictions
from viewalign.evaluation.task_metrics import TaskScore, score_predictions
from viewalign.finetuning.classification import adapters
from viewalign.finetuning.classification.models import Predictor, write_model
from viewalign.finetuning.classification.network import GlobalNetwork, initial_bias
from viewalign.finetuning.classification.settings import TaskTraining, settings_that_differ
from viewalign.finetuning.classification.training import FoldTraining, predict_sample
from viewalign.tasks.cases import prepare_cases
from viewalign.tasks.folds import Fold, join_copies, make_folds
from viewalign.tasks.manifest import TaskCase, read_manifest
from viewalign.tasks.preprocessing import Preprocessor, Sample
from viewalign.tasks.spec import FILE as SPEC
from viewalign.tasks.spec import TaskSpec, read_spec, write_spec
from viewalign.utils.io import write_json, write_text
from viewalign.utils.locks import LOCK, lock_folder
from viewalign.utils.memory import reported_out_of_memory
from viewalign.utils.outputs import check_folder
from viewalign.utils.precision import choose_device
from viewalign.utils.settings import checked
from viewalign.utils.text import counted
from viewalign.utils.yaml_values import load_yaml
from viewalign.weights.token_order import Order

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
Rows = dict[str, tuple[str, NDArray[np.float64]]]
"""Fold (or "test") and prediction of each case."""

_SETTINGS = "settings.yaml"
LOSSES = "losses.json"
"""Training loss of each epoch, in a fold's folder."""


@reported_out_of_memory(
    "fine-tuning",
    "Use accumulate=2 or more, precision=auto, mode=lora or frozen, or smaller patch_size. Completed epochs are kept.",
)
def finetune(
    task: str | Path,
    encoder: str,
    out: Path,
    settings: TaskTraining,
    *,
    token_order: Order | None = None,
    cache: Path | None = None,
    workers: int | None = None,
) -> tuple[TaskScore, list[tuple[str, str]]]:
    """Fine-tune an encoder with cross-validation, evaluate all folds together, and write the models.

    Writes `fold_*/model.*`, `predictions.csv`, `metrics.json`, `folds.json`, `settings.yaml`, `task.yaml` and
    `basis.json`. Called again with the same encoder, task, images and settings, it resumes.

    Args:
        task: the task's folder.
        encoder: see `evaluation.encoders.read_pretrained`.
        out: the output folder.
        settings: of the fine-tuning.
        token_order: of a Primus checkpoint that does not state it.
        cache, workers: see `tasks.cases.iter_prepared`.

    Returns:
        The score over held-out cases (over test cases if none are held out), and name and reason of each case that
        could not be used.

    Raises:
        UserError: invalid task, encoder or settings, or a folder of a fine-tuning that differs in one of them.
    """
    spec = read_spec(task)
    cases = read_manifest(task, spec)
    start = read_pretrained(encoder, token_order)
    preprocessor = make_preprocessor(start, spec, settings)
    choose_device(settings.device)  # fails before cases are prepared
    with lock_folder(out):
        _check_settings(out, settings)
        _log.info("Preparing %s.", counted(len(cases), "case"))
        samples, excluded = prepare_cases(cases, preprocessor, cache=cache, workers=workers)
        usable = [case for case in cases if case.case in samples]
        _check_basis(out, spec, usable, samples, start, preprocessor, settings)
        write_json(out / "refused.json", [list(pair) for pair in excluded])
        write_spec(spec, out)
        write_text(out / _SETTINGS, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        run = _CrossValidation(spec, settings, usable, samples, start, preprocessor, out, excluded)
        scores = run.train_and_evaluate(encoder)
    for name, score in scores.items():
        table = task_metrics.table(score.values, score.intervals)
        kind = name.replace("_", "-")
        _log.info("%s: %d %s cases, 95 %% intervals over subjects\n%s", spec.name, len(score.cases), kind, table)
    return next(iter(scores.values())), excluded


def make_preprocessor(start: Pretrained, spec: TaskSpec, settings: TaskTraining) -> Preprocessor:
    """Build the preprocessor, as in pretraining unless settings differ, which is reported."""
    prepared = with_spacing(start.preparation, settings.spacing)
    if settings.normalise != "pretraining":
        prepared = prepared.model_copy(update={"normalise": settings.normalise, "window": None})
    if start.source is not None and prepared != start.preparation:
        _log.info(
            "Images are prepared as %s; those of pretraining were %s.",
            prepared.describe(),
            start.preparation.describe(),
        )
    compare_channels(start.preparation, spec)
    size = settings.patch_size or default_size(start)
    return Preprocessor(spec.channels, size, prepared, settings.strip, settings.frames)


def _check_settings(out: Path, settings: TaskTraining) -> None:
    """Check that a folder is new, or of a fine-tuning with the same settings.

    Raises:
        UserError: a fold was begun with other settings, or the folder contains no fine-tuning but other files.
    """
    file = out / _SETTINGS
    check_folder(out, "fine-tuning", file.is_file() and (out / SPEC).is_file(), (LOCK,))
    if file.is_file() and any(out.glob("fold_*")):
        before = checked(TaskTraining, load_yaml(file.read_text()), str(file))
        if changes := settings_that_differ(before, settings):
            raise UserError(
                f"{out} contains a fine-tuning with other settings: {changes}. Use the same settings to resume it, or "
                "choose another folder."
            )


_BASIS = {
    "encoder": "other weights of the encoder",
    "task": "other channels, classes or range",
    "cases": "other names, subjects, sites, targets, splits or folds of the cases",
    "images": "other images, masks or preparation of them",
}


def _check_basis(
    out: Path,
    spec: TaskSpec,
    cases: Sequence[TaskCase],
    samples: Mapping[str, Sample],
    start: Pretrained,
    preprocessor: Preprocessor,
    settings: TaskTraining,
) -> None:
    """Write digests of what a fine-tuning depends on beside its settings, or check that a begun one has the same.

    Raises:
        UserError: a fold was begun with another encoder, task, cases or images.
    """
    backbone, _ = build_encoder(start, preprocessor.size, len(spec.channels), settings.min_share, settings.seed)
    if settings.pool == "pretrained":
        load_pretrained_pooling(backbone, start)
    images = hashlib.sha256()
    for case in cases:
        for array in (samples[case.case].image, samples[case.case].valid, samples[case.case].present):
            images.update(array.tobytes())
    rows = [[case.case, case.subject, case.site, case.target, case.split, case.fold] for case in cases]
    task = spec.model_dump(mode="json", include={"kind", "channels", "classes", "range", "laterality"})
    basis = {
        "encoder": weights_digest(backbone),
        "task": _digest(task),
        "cases": _digest(rows),
        "images": images.hexdigest(),
    }
    file = out / "basis.json"
    if file.is_file() and any(out.glob("fold_*")):
        before = json.loads(file.read_text())
        if others := [_BASIS[name] for name, digest in basis.items() if before.get(name) != digest]:
            raise UserError(
                f"{out} contains a fine-tuning with {' and '.join(others)}. Use the same to resume it, or choose "
                "another folder."
            )
    write_json(file, basis)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True)
class _CrossValidation:
    spec: TaskSpec
    settings: TaskTraining
    cases: list[TaskCase]
    samples: Mapping[str, Sample]
    start: Pretrained
    preprocessor: Preprocessor
    out: Path
    excluded: Sequence[tuple[str, str]]

    def train_and_evaluate(self, encoder: str) -> dict[str, TaskScore]:
        """Train all folds, evaluate held-out and test cases, and write predictions and metrics."""
        settings, spec = self.settings, self.spec
        cases = join_copies(self.cases, {name: sample.fingerprint for name, sample in self.samples.items()})
        folds = make_folds(cases, spec, settings.folds, settings.seed, settings.by_site, self.excluded)
        write_json(self.out / "folds.json", folds.as_json())
        held_out: Rows = {}
        for fold in folds.folds:
            held_out |= self._train_fold(fold)
        test = self._predict_test() if folds.test else {}
        scores = {name: self._score(rows) for name, rows in (("held_out", held_out), ("test", test)) if rows}
        write_predictions(self.out / PREDICTIONS, self.cases, held_out | test, spec)
        metrics: dict[str, Any] = {
            "task": spec.name,
            "kind": spec.kind,
            "primary": spec.figure,
            "network": self.start.network,
            "encoder": encoder,
            "folds": folds.digest,
        }
        for name, score in scores.items():
            metrics[name] = {"cases": len(score.cases), "values": score.values, "intervals": score.intervals}
        write_json(self.out / "metrics.json", metrics)
        return scores

    def _train_fold(self, fold: Fold) -> Rows:
        """Train one fold, write its model, and predict its held-out cases."""
        folder = self.out / f"fold_{fold.number}"
        members = set(fold.train)
        train_cases = [case for case in self.cases if case.case in members]
        network = self._build_network(train_cases, verbose=fold.number == 0)
        checkpoints = folder / "checkpoints"
        training = FoldTraining(network, train_cases, self.samples, self.spec, self.settings, fold.number, checkpoints)
        training.run()
        if self.settings.mode in adapters.LOW_RANK:
            adapters.merge(network.backbone)
        write_json(folder / LOSSES, training.losses)
        mirrored = training.mirrored
        write_model(folder, network, self.start.network, self.spec, self.preprocessor, training.scale, mirrored)
        rows = {}
        for name in fold.held_out:
            predicted = predict_sample(network, self.samples[name], self.spec, training.scale, training.device)
            rows[name] = (str(fold.number), predicted)
        return rows

    def _build_network(self, train_cases: Sequence[TaskCase], verbose: bool) -> GlobalNetwork:
        """Build a fold's network from the encoder; `verbose` prints which weights were loaded."""
        spec, settings = self.spec, self.settings
        channels = len(spec.channels)
        backbone, loaded = build_encoder(
            self.start, self.preprocessor.size, channels, settings.min_share, settings.seed
        )
        if settings.pool == "pretrained":
            load_pretrained_pooling(backbone, self.start)
        if loaded is not None and verbose:
            _log.info("%s", loaded.text())
        targets = [case.target for case in train_cases if case.target is not None]
        bias = initial_bias(targets, spec, settings.balanced or settings.class_weights)
        network = GlobalNetwork(backbone, spec.outputs, settings.pool, settings.dropout, bias)
        if settings.mode in adapters.LOW_RANK:
            low = settings.lora
            adapters.attach(backbone, settings.mode, low.rank, low.alpha, low.dropout, settings.seed)
        return network

    def _predict_test(self) -> Rows:
        """Predict test cases by the mean over all folds."""
        predictor = Predictor(self.out, choose_device(self.settings.device))
        test = [case.case for case in self.cases if case.split == "test"]
        return {name: ("test", predictor.predict_sample(self.samples[name])) for name in test}

    def _score(self, rows: Rows) -> TaskScore:
        cases = [case for case in self.cases if case.case in rows]
        predicted = np.stack([rows[case.case][1] for case in cases])
        if self.spec.kind == "regression":
            predicted = predicted[:, 0]
        return score_predictions(self.spec, cases, predicted, self.settings.draws, self.settings.seed)
