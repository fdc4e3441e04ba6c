"""A whole fine-tuning: cases prepared once, each fold judged on what it has not seen, all folds judged together."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation import task_metrics
from viewalign.evaluation.encoders import (
    Pretrained,
    build_encoder,
    default_size,
    fill_own_pooling,
    read_pretrained,
    with_spacing,
)
from viewalign.evaluation.linear_probe import LinearProbeScore, score
from viewalign.finetuning.classification import network as lora
from viewalign.finetuning.classification.models import Predictor, in_words, prediction_columns, write_model
from viewalign.finetuning.classification.network import GlobalNetwork, first_bias
from viewalign.finetuning.classification.settings import TaskTraining, settings_that_differ
from viewalign.finetuning.classification.training import FoldTraining, predict_sample
from viewalign.tasks.cases import prepare_cases
from viewalign.tasks.folds import Fold, check_learnable, make_folds
from viewalign.tasks.manifest import TaskCase, read_manifest, target_text
from viewalign.tasks.preprocessing import Preprocessor, Sample
from viewalign.tasks.spec import TaskSpec, read_spec, write_spec
from viewalign.utils.io import atomic_write
from viewalign.utils.locks import lock_folder
from viewalign.utils.memory import reported_out_of_memory
from viewalign.utils.precision import choose_device
from viewalign.utils.settings import checked

Say = Callable[[str], None]
LOSSES = "losses.json"
"""The training loss of each epoch, in a fold's folder."""


@reported_out_of_memory(
    "fine-tuning",
    "Take accumulate=2 or more, precision=auto, mode=lora or frozen, or a smaller patch_size. Finished epochs stay.",
)
def finetune(
    task: str | Path,
    encoder: str,
    out: Path,
    settings: TaskTraining,
    say: Say = print,
    token_order: Any = None,
    cache: Path | None = None,
    workers: int | None = None,
) -> tuple[LinearProbeScore, list[tuple[str, str]]]:
    """Fine-tune an encoder for a task in folds, judge it once over all of them, and keep what prediction needs.

    The folder gets `fold_*/model.*`, `predictions.csv`, `metrics.json`, `folds.json`, `settings.yaml` and `task.yaml`;
    called again with the same settings it goes on where it stopped. Cases are prepared by `workers` processes
    (`tasks.prepared_cases`) and kept in `cache`, where one is given.

    Returns:
        The figures over all held-out cases (over the test cases where none are held out), and name and reason of each
        case that could not be used.

    Raises:
        UserError: what does not fit.
    """
    spec = read_spec(task)
    cases = read_manifest(task, spec)
    start = read_pretrained(encoder, token_order)
    preprocessor = preprocessor_for(start, spec, settings, say)
    choose_device(settings.device)  # refused before cases are prepared
    with lock_folder(out):
        _begin(out, spec, settings)
        say(f"{len(cases)} cases are prepared.")
        samples, excluded = prepare_cases(cases, preprocessor, cache=cache, workers=workers)
        _keep(out / "refused.json", [list(pair) for pair in excluded])
        usable = [case for case in cases if case.case in samples]
        judged = _all_folds(_Tuning(spec, settings, usable, samples, start, preprocessor, out, say), encoder)
    for name, one in judged.items():
        say(f"{spec.name}: {len(one.cases)} {name.replace('_', '-')} cases, 95 % intervals over subjects")
        say(task_metrics.table(one.values, one.intervals))
    return next(iter(judged.values())), excluded


@dataclass(frozen=True)
class _Tuning:
    """What all folds share."""

    spec: TaskSpec
    settings: TaskTraining
    cases: list[TaskCase]
    samples: Mapping[str, Sample]
    start: Pretrained
    preprocessor: Preprocessor
    out: Path
    say: Say


def _all_folds(tuning: _Tuning, encoder: str) -> dict[str, LinearProbeScore]:
    """Train all folds, judge held-out and test cases, and write what came out; `encoder` is what it is called."""
    spec, settings, cases, out = tuning.spec, tuning.settings, tuning.cases, tuning.out
    folds = make_folds(cases, spec, settings.folds, settings.seed, settings.by_site)
    _keep(out / "folds.json", folds.as_json())
    rows: dict[str, tuple[str, NDArray[np.float64]]] = {}
    for fold in folds.folds:
        rows |= {name: (str(fold.number), value) for name, value in _run_fold(tuning, fold).items()}
    judged = {"held_out": _judge(cases, rows, spec, settings)} if rows else {}
    if folds.test:
        rows_test = _predict_test(tuning)
        judged["test"] = _judge(cases, rows_test, spec, settings)
        rows |= rows_test
    write_predictions(out / "predictions.csv", cases, rows, spec)
    facts = {
        "task": spec.name,
        "kind": spec.kind,
        "primary": spec.figure,
        "network": tuning.start.network,
        "encoder": encoder,
        "folds": folds.digest,
    }
    _keep(out / "metrics.json", {**facts, **{name: _told(one) for name, one in judged.items()}})
    return judged


def _keep(file: Path, tree: Any) -> None:
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(tree, indent=1))


def preprocessor_for(start: Pretrained, spec: TaskSpec, settings: TaskTraining, say: Say) -> Preprocessor:
    """Make the preprocessor: as in pretraining where nothing else is asked for, and say where it departs from that."""
    prepared = with_spacing(start.preparation, settings.spacing)
    if settings.normalise != "pretraining":
        prepared = prepared.model_copy(update={"normalise": settings.normalise})
    if start.source is not None and prepared != start.preparation:
        say(f"Images are prepared as {prepared.describe()}; those of pretraining were {start.preparation.describe()}.")
    size = settings.patch_size or default_size(start)
    return Preprocessor(spec.channels, size, prepared, settings.strip, settings.frames)


def _run_fold(tuning: _Tuning, fold: Fold) -> dict[str, NDArray[np.float64]]:
    """Train one fold, keep its model, and predict its held-out cases."""
    spec, settings, folder = tuning.spec, tuning.settings, tuning.out / f"fold_{fold.number}"
    taught = [case for case in tuning.cases if case.case in set(fold.train)]
    check_learnable(taught, spec, f"Fold {fold.number}")
    network = _network(tuning, taught, first=fold.number == 0)
    training = FoldTraining(network, taught, tuning.samples, spec, settings, fold.number, folder / "checkpoints")
    training.run(tuning.say)
    if settings.mode == "lora":
        lora.merge(network.backbone)
    _keep(folder / LOSSES, training.losses)
    scale = (training.centre, training.spread)
    write_model(folder, network, tuning.start.network, spec, tuning.preprocessor, scale)
    device = training.settings.device
    return {name: predict_sample(network, tuning.samples[name], spec, scale, device) for name in fold.held_out}


def _network(tuning: _Tuning, taught: Sequence[TaskCase], first: bool) -> GlobalNetwork:
    """Build a fold's network from the encoder; the first fold says how its weights fitted."""
    spec, settings, start, size = tuning.spec, tuning.settings, tuning.start, tuning.preprocessor.size
    backbone, fitted = build_encoder(start, size, len(spec.channels), settings.min_share, settings.seed)
    if settings.pool == "pretrained":
        fill_own_pooling(backbone, start)
    if fitted is not None and first:
        tuning.say(fitted.text())
    targets = [case.target for case in taught if case.target is not None]
    bias = first_bias(targets, spec, settings.balanced or settings.class_weights)
    network = GlobalNetwork(backbone, spec.outputs, settings.pool, settings.dropout, bias)
    if settings.mode == "lora":
        lora.attach(backbone, settings.lora.rank, settings.lora.alpha, settings.lora.dropout, settings.seed)
    return network


def _begin(out: Path, spec: TaskSpec, settings: TaskTraining) -> None:
    told = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    file = out / "settings.yaml"
    if file.is_file():
        before = checked(TaskTraining, yaml.safe_load(file.read_text()), str(file))
        if unlike_before := settings_that_differ(before, settings):
            raise UserError(
                f"{out} holds a fine-tuning with other settings: {unlike_before}. Go on with the same, "
                "or choose another folder."
            )
    write_spec(spec, out)
    with atomic_write(file) as partial:
        partial.write_text(told)


def _predict_test(tuning: _Tuning) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Predict test cases by all folds together."""
    device = choose_device(tuning.settings.device)
    predictor = Predictor(tuning.out, device)
    rows = {}
    for case in (case for case in tuning.cases if case.split == "test"):
        sample = tuning.samples[case.case]
        found = [predict_sample(m.network, sample, m.spec, m.scale, device) for m in predictor.models]
        rows[case.case] = ("test", np.mean(found, axis=0))
    return rows


def _judge(
    cases: Sequence[TaskCase],
    rows: Mapping[str, tuple[str, NDArray[np.float64]]],
    spec: TaskSpec,
    settings: TaskTraining,
) -> LinearProbeScore:
    judged = [case for case in cases if case.case in rows]
    predicted = np.stack([rows[case.case][1] for case in judged])
    return score(
        spec, judged, predicted[:, 0] if spec.kind == "regression" else predicted, settings.draws, settings.seed
    )


def _told(result: LinearProbeScore) -> dict[str, Any]:
    ends = {name: None if pair is None else list(pair) for name, pair in result.intervals.items()}
    return {"cases": len(result.cases), "values": result.values, "intervals": ends}


def write_predictions(
    file: Path, cases: Sequence[TaskCase], rows: Mapping[str, tuple[str, NDArray[np.float64]]], spec: TaskSpec
) -> None:
    """Write a row a case: its name, subject, fold, target, and probabilities or value."""
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "subject", "fold", "target", *prediction_columns(spec)])
        for case in cases:
            if case.case in rows:
                fold, predicted = rows[case.case]
                writer.writerow(
                    [case.case, case.subject, fold, target_text(case.target, spec), *in_words(predicted.tolist())]
                )
