"""Probe several encoders, untrained networks and intensity statistics on one task, and tabulate the results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation import fomo_metrics, linear_probe, task_metrics
from viewalign.evaluation.embedding import embed, intensity_statistics
from viewalign.evaluation.encoders import (
    UNTRAINED,
    Pretrained,
    check_installed,
    encoder_and_preprocessor,
    read_pretrained,
)
from viewalign.evaluation.linear_probe import CurvePoint
from viewalign.evaluation.settings import ProbeSettings
from viewalign.evaluation.task_metrics import TaskScore
from viewalign.networks.backbone import Backbone
from viewalign.tasks.cases import iter_prepared
from viewalign.tasks.folds import Fold, join_copies, make_folds
from viewalign.tasks.manifest import TaskCase, read_manifest
from viewalign.tasks.preprocessing import Preprocessor
from viewalign.tasks.spec import TaskSpec, read_spec
from viewalign.utils.io import write_json
from viewalign.utils.text import counted

_log = logging.getLogger(__name__)

INTENSITIES = "intensity statistics"


def run_probe(
    encoders: Sequence[str],
    task: str | Path,
    out: Path,
    plan: ProbeSettings,
) -> dict[str, Any]:
    """Probe encoders on a task, write a JSON file and log a table.

    Args:
        encoders: paths.
        task: the task's folder.
        out: the JSON file.
        plan: settings.

    Returns:
        The content of the JSON file; `excluded` has name and reason of each unusable case.

    Raises:
        UserError: the task or an encoder cannot be used.
    """
    check_installed()
    spec = read_spec(task)
    cases = read_manifest(task, spec)
    train = sum(case.split == "train" for case in cases)
    if max(plan.shots, default=0) > train:  # before features are computed, which takes minutes
        raise UserError(f"shots={max(plan.shots)} is more than {counted(train, 'training case')}.")
    _names(encoders, plan)
    planned = evaluation_folds(cases, spec, plan.folds, plan.seed)
    linear_probe.check_learners(cases, planned, spec, plan.learners, plan.shots, plan.seed)
    ready = _read_encoders(encoders, spec, plan)
    features, excluded, facts, fingerprints = _compute_features(ready, spec, cases, plan)
    usable = usable_cases(cases, fingerprints, excluded)
    folds = evaluation_folds(usable, spec, plan.folds, plan.seed)
    scores: dict[str, TaskScore] = {}
    curves: dict[str, list[CurvePoint]] = {}
    for learner in plan.learners:
        for name, rows in features.items():
            key = f"{name}, {learner}"
            scores[key] = linear_probe.probe(rows, usable, folds, spec, learner, plan.draws, plan.seed)
            if plan.shots and learner == plan.learners[0]:
                curves[key] = linear_probe.few_shot_curve(
                    rows, usable, folds[0], spec, plan.shots, plan.repeats, learner, plan.seed
                )
    differences = _differences(scores, usable, spec, plan)
    fairness = {name: fairness_of(score, usable, spec) for name, score in scores.items()}
    results = {
        **_as_json(scores, curves, spec),
        "fairness": fairness,
        "differences": differences,
        "encoders": facts,
        "excluded": [list(pair) for pair in excluded],
        "evaluated": len(next(iter(scores.values())).cases),
    }
    write_json(out, results)
    _log.info("%s", summary(scores, curves, differences, spec, fairness))
    _log.info("Results: %s", out)
    return results


def fairness_of(score: TaskScore, cases: Sequence[TaskCase], spec: TaskSpec) -> dict[str, Any]:
    """Return the disparity of AUROC and F1 between the groups of each variable, and fairness scores, as in FOMO26.

    Empty if no case has groups, and for tasks without one true class.
    """
    by_name = {case.case: case for case in cases}
    evaluated = [by_name[case] for case in score.cases]
    variables = sorted({name for case in evaluated for name in case.groups})
    if not variables or spec.kind not in ("binary", "multiclass"):
        return {}
    truth = np.array([case.target for case in evaluated])
    found: dict[str, Any] = {}
    for figure, metric in (("auroc", fomo_metrics.ovr_auroc), ("f1", fomo_metrics.ovr_f1)):
        disparity = {
            name: fomo_metrics.max_disparity(
                metric, truth, score.predicted, [case.groups.get(name, "") for case in evaluated]
            )
            for name in variables
        }
        found[figure] = {"score": fomo_metrics.fairness_score(disparity), "disparity": disparity}
    return found


def usable_cases(
    cases: Sequence[TaskCase], fingerprints: Mapping[str, NDArray[np.int8]], excluded: Sequence[tuple[str, str]]
) -> list[TaskCase]:
    """Return the cases that are not excluded; copies of one image count as one subject.

    Args:
        cases: all cases of the task.
        fingerprints: of the images of the usable cases.
        excluded: name and reason of the others.

    Raises:
        UserError: every test case is excluded, without which the others would be divided into folds instead.
    """
    usable = join_copies([case for case in cases if case.case in fingerprints], fingerprints)
    tests = {case.case for case in cases if case.split == "test"}
    if tests and not any(case.split == "test" for case in usable):
        name, reason = next(pair for pair in excluded if pair[0] in tests)
        raise UserError(f"None of {counted(len(tests), 'test case')} can be used. {name}: {reason}.")
    return usable


def evaluation_folds(cases: Sequence[TaskCase], spec: TaskSpec, count: int, seed: int) -> list[Fold]:
    """Return a single fold that holds out the test cases if there are any, otherwise folds of all cases."""
    test = tuple(case.case for case in cases if case.split == "test")
    if test:
        return [Fold(0, tuple(case.case for case in cases if case.split == "train"), test)]
    return list(make_folds(cases, spec, count, seed).folds)


@dataclass(frozen=True)
class _Encoder:
    """An encoder that is ready to embed.

    Attributes:
        name: in tables.
        start: of the encoder, without its weights.
        trained: whether it has pretrained weights.
        backbone: with the weights.
        preprocessor: of the task's cases.
    """

    name: str
    start: Pretrained
    trained: bool
    backbone: Backbone
    preprocessor: Preprocessor


def _names(encoders: Sequence[str], plan: ProbeSettings) -> Sequence[str]:
    """Return the names of the encoders in tables, which differ."""
    if plan.names and len(plan.names) != len(encoders):
        raise UserError(f"names has {counted(len(plan.names), 'name')} for {counted(len(encoders), 'encoder')}.")
    names = plan.names or [Path(path).name or path for path in encoders]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"Two encoders are called '{twice}'; set names=first,second.")
    return names


def _read_encoders(encoders: Sequence[str], spec: TaskSpec, plan: ProbeSettings) -> list[_Encoder]:
    """Read and build all encoders, so that one that cannot be used is known before features are computed."""
    found = []
    for name, path in zip(_names(encoders, plan), encoders, strict=True):
        start = read_pretrained(path)
        backbone, preprocessor = encoder_and_preprocessor(
            start, spec, plan.patch_size, plan.spacing, plan.pool, channels=plan.channels
        )
        light = replace(start, source=None, pooling={})
        found.append(_Encoder(name, light, start.source is not None, backbone, preprocessor))
    return found


def _compute_features(
    encoders: list[_Encoder], spec: TaskSpec, cases: Sequence[TaskCase], plan: ProbeSettings
) -> tuple[dict[str, NDArray[Any]], list[tuple[str, str]], dict[str, Any], dict[str, NDArray[np.int8]]]:
    """Return features by name, excluded cases, facts about each encoder, and the fingerprint of each usable case.

    Encoders are removed from the list as they are used, which frees their memory.
    """
    features: dict[str, NDArray[Any]] = {}
    facts: dict[str, Any] = {}
    fingerprints: dict[str, NDArray[np.int8]] = {}
    excluded: list[tuple[str, str]] | None = None
    preparing: dict[str, Any] = {"cache": plan.cache and Path(plan.cache), "workers": plan.workers}
    while encoders:
        encoder = encoders.pop(0)
        name, start = encoder.name, encoder.start
        result = embed(encoder.backbone, encoder.preprocessor, cases, plan.pool, device=plan.device, **preparing)
        features[name], facts[name] = result.features, result.facts
        if excluded is not None and dict(excluded).keys() != dict(result.excluded).keys():
            raise UserError(f"{name} is preprocessed differently and excludes other cases; set spacing or patch_size.")
        excluded = list(result.excluded)
        baseline = f"untrained {start.network}"
        if encoder.trained and baseline not in features:
            untrained = encoder_and_preprocessor(
                UNTRAINED + start.network, spec, plan.patch_size, plan.spacing, "multistage", start, plan.channels
            )
            features[baseline] = embed(*untrained, cases, "multistage", device=plan.device, **preparing).features
        if INTENSITIES not in features:
            statistics = {  # one case at a time: all samples together may not fit into memory
                case.case: intensity_statistics(sample)
                for case, sample in iter_prepared(cases, encoder.preprocessor, **preparing)
                if not isinstance(sample, str)
            }
            features[INTENSITIES] = np.stack([statistics[n] for n in result.cases])
            fingerprints = dict(result.fingerprints)
    return features, excluded or [], facts, fingerprints


def _differences(
    scores: Mapping[str, TaskScore], cases: Sequence[TaskCase], spec: TaskSpec, plan: ProbeSettings
) -> dict[str, Any]:
    """Return the difference of the primary metric between all features and each baseline, with paired intervals."""
    by_name = {case.case: case for case in cases}
    differences: dict[str, Any] = {}
    for key, score in scores.items():
        name, learner = key.rsplit(", ", 1)
        evaluated = [by_name[case] for case in score.cases]
        truth, subjects = np.array([case.target for case in evaluated]), [case.subject for case in evaluated]
        for baseline_key, baseline in scores.items():
            other, other_learner = baseline_key.rsplit(", ", 1)
            is_baseline = other.startswith("untrained ") or other == INTENSITIES
            if learner != other_learner or name == other or not is_baseline:
                continue
            interval = task_metrics.difference_intervals(
                spec.kind, truth, baseline.predicted, score.predicted, subjects, plan.draws, plan.seed
            )[spec.figure]
            value = score.values[spec.figure] - baseline.values[spec.figure]
            differences[f"{key} - {other}"] = {"value": value, "interval": interval and list(interval)}
    return differences


def _as_json(
    scores: Mapping[str, TaskScore], curves: Mapping[str, Sequence[CurvePoint]], spec: TaskSpec
) -> dict[str, Any]:
    return {
        "task": spec.name,
        "kind": spec.kind,
        "primary": spec.figure,
        "features": {
            name: {
                "values": score.values,
                "intervals": {k: interval and list(interval) for k, interval in score.intervals.items()},
                "chosen": list(score.chosen),
                "cases": list(score.cases),
                "predicted": score.predicted.tolist(),
            }
            for name, score in scores.items()
        },
        "curves": {name: [{**vars(p), "draws": list(p.draws)} for p in points] for name, points in curves.items()},
    }


def summary(
    scores: Mapping[str, TaskScore],
    curves: Mapping[str, Sequence[CurvePoint]],
    differences: Mapping[str, Any],
    spec: TaskSpec,
    fairness: Mapping[str, Any],
) -> str:
    """Format the primary metric of all features as a table for a terminal."""
    count = len(next(iter(scores.values())).cases)
    better = "lower" if spec.figure in task_metrics.LOWER_IS_BETTER else "higher"
    cases = counted(count, "case")
    lines = [f"{spec.name}: {spec.figure} over {cases}, 95 % interval over subjects ({better} is better)"]
    width = max(len(name) for name in scores)
    for name, score in scores.items():
        ends = score.intervals[spec.figure]
        interval = "" if ends is None else f"  {ends[0]:.3f} to {ends[1]:.3f}"
        lines.append(f"  {name:<{width}}  {score.values[spec.figure]:.3f}{interval}")
    for name, points in curves.items():
        text = "  ".join(f"{p.shots}: {p.mean:.3f} ({p.low:.3f} to {p.high:.3f})" for p in points)
        lines.append(f"  few shots, {name}:  {text}")
    for name, difference in differences.items():
        ends = difference["interval"]
        if ends is not None:
            lines.append(f"  {name}: {difference['value']:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})")
    lines += [
        f"  fairness, {name}: AUROC {found['auroc']['score']:.3f}, F1 {found['f1']['score']:.3f} (1: equal groups)"
        for name, found in fairness.items()
        if found
    ]
    return "\n".join(lines)
