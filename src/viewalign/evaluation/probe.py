"""A whole probe: several encoders, the untrained network and plain intensities on one task, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation import linear_probe, task_metrics
from viewalign.evaluation.embedding import embed, intensity_statistics
from viewalign.evaluation.encoders import UNTRAINED, check_installed, encoder_and_preprocessor, read_pretrained
from viewalign.evaluation.linear_probe import CurvePoint, LinearProbeScore
from viewalign.evaluation.settings import ProbeSettings
from viewalign.tasks.cases import prepare_cases
from viewalign.tasks.folds import Fold, make_folds
from viewalign.tasks.manifest import TaskCase, read_manifest
from viewalign.tasks.spec import TaskSpec, read_spec

INTENSITIES = "intensity statistics"


def run_probe(
    encoders: Sequence[str],
    task: str | Path,
    out: Path,
    plan: ProbeSettings,
    say: Callable[[str], None],
) -> list[tuple[str, str]]:
    """Probe encoders on a task, write the JSON, and tell a table.

    Args:
        encoders: paths.
        task: its folder.
        out: where the JSON goes.
        plan: what to do.
        say: takes lines of text.

    Returns:
        Name and reason of each case that could not be used.

    Raises:
        UserError: what cannot be probed.
    """
    check_installed()
    spec = read_spec(task)
    cases = read_manifest(task, spec)
    features, excluded, facts = _all_features(encoders, spec, cases, plan)
    usable = [case for case in cases if case.case not in dict(excluded)]
    folds = judged_folds(usable, spec, plan.folds, plan.seed)
    scores: dict[str, LinearProbeScore] = {}
    curves: dict[str, list[CurvePoint]] = {}
    for learner in plan.learners:
        for name, rows in features.items():
            key = f"{name}, {learner}"
            scores[key] = linear_probe.probe(rows, usable, folds, spec, learner, plan.draws, plan.seed)
            if plan.shots and learner == plan.learners[0]:
                curves[key] = linear_probe.few_shot_curve(
                    rows, usable, folds[0], spec, plan.shots, plan.repeats, learner, plan.seed
                )
    told = linear_probe.as_json(scores, curves, spec)
    told["differences"] = _differences(scores, usable, spec, plan)
    told |= {
        "encoders": facts,
        "excluded": [list(pair) for pair in excluded],
        "judged": len(scores[next(iter(scores))].cases),
    }
    linear_probe.write(out, told)
    say(summary(scores, curves, told["differences"], spec))
    say(f"All figures: {out}")
    return excluded


def judged_folds(cases: Sequence[TaskCase], spec: TaskSpec, count: int, seed: int) -> list[Fold]:
    """Return one fold that judges the test cases where there are any, else the folds of all cases."""
    test = tuple(case.case for case in cases if case.split == "test")
    if test:
        return [Fold(0, tuple(case.case for case in cases if case.split == "train"), test)]
    return list(make_folds(cases, spec, count, seed).folds)


def _all_features(
    encoders: Sequence[str], spec: TaskSpec, cases: Sequence[TaskCase], plan: ProbeSettings
) -> tuple[dict[str, NDArray[Any]], list[tuple[str, str]], dict[str, Any]]:
    """Embed all cases by each encoder, its untrained twin, and plain intensities, on the same cases."""
    features: dict[str, NDArray[Any]] = {}
    facts: dict[str, Any] = {}
    excluded: list[tuple[str, str]] | None = None
    cache = None if plan.cache is None else Path(plan.cache)
    ready: dict[str, Any] = {"cache": cache, "workers": plan.workers}
    if plan.names and len(plan.names) != len(encoders):
        raise UserError(f"names has {len(plan.names)} names for {len(encoders)} encoders.")
    for name, path in zip(plan.names or [Path(path).name or path for path in encoders], encoders, strict=True):
        if name in features:
            raise UserError(f"Two encoders are called '{name}'; name them, as names=first,second.")
        backbone, preprocessor = encoder_and_preprocessor(path, spec, plan.patch_size, plan.spacing, plan.pool)
        found = embed(backbone, preprocessor, cases, plan.pool, device=plan.device, **ready)
        features[name], facts[name] = found.features, found.facts
        if excluded is not None and dict(excluded).keys() != dict(found.excluded).keys():
            raise UserError(f"{name} is prepared otherwise and can use other cases; set spacing, or probe it alone.")
        excluded = list(found.excluded)
        start = read_pretrained(path)
        twin = f"untrained {start.network}"
        if start.source is not None and twin not in features:
            fresh, same = encoder_and_preprocessor(
                UNTRAINED + start.network, spec, plan.patch_size, plan.spacing, "multistage", like=start
            )
            features[twin] = embed(
                fresh, same, cases, "multistage", device=plan.device, cache=cache, workers=plan.workers
            ).features
        if INTENSITIES not in features:
            samples, _ = prepare_cases(cases, preprocessor, **ready)
            features[INTENSITIES] = np.stack([intensity_statistics(samples[n]) for n in found.cases])
    return features, excluded or [], facts


def _differences(
    scores: dict[str, LinearProbeScore], cases: Sequence[TaskCase], spec: TaskSpec, plan: ProbeSettings
) -> dict[str, Any]:
    """Return, for each kind of features, the primary figure's gain over each baseline, with paired intervals."""
    known = {case.case: case for case in cases}
    told: dict[str, Any] = {}
    for key, one in scores.items():
        name, learner = key.rsplit(", ", 1)
        for base_key, base in scores.items():
            base_name, base_learner = base_key.rsplit(", ", 1)
            plain = base_name.startswith("untrained ") or base_name == INTENSITIES
            if learner != base_learner or name == base_name or not plain:
                continue
            judged = [known[case] for case in one.cases]
            ends = task_metrics.difference_intervals(
                spec.kind,
                np.array([case.target for case in judged]),
                base.predicted,
                one.predicted,
                [case.subject for case in judged],
                plan.draws,
                plan.seed,
            )[spec.figure]
            value = one.values[spec.figure] - base.values[spec.figure]
            told[f"{key} - {base_name}"] = {"value": value, "interval": None if ends is None else list(ends)}
    return told


def summary(
    scores: dict[str, LinearProbeScore],
    curves: dict[str, list[CurvePoint]],
    differences: dict[str, Any],
    spec: TaskSpec,
) -> str:
    """Return a table for a terminal: the primary figure of each kind of features."""
    judged = len(next(iter(scores.values())).cases)
    better = "lower" if spec.figure in task_metrics.LOWER_IS_BETTER else "higher"
    lines = [f"{spec.name}: {spec.figure} over {judged} cases, 95 % interval over subjects ({better} is better)"]
    width = max(len(name) for name in scores)
    for name, one in scores.items():
        ends = one.intervals[spec.figure]
        told = "" if ends is None else f"  {ends[0]:.3f} to {ends[1]:.3f}"
        lines.append(f"  {name:<{width}}  {one.values[spec.figure]:.3f}{told}")
    for name, points in curves.items():
        told = "  ".join(f"{p.shots}: {p.mean:.3f} ({p.low:.3f} to {p.high:.3f})" for p in points)
        lines.append(f"  few shots, {name}:  {told}")
    for name, one_told in differences.items():
        ends = one_told["interval"]
        if ends is not None:
            lines.append(f"  {name}: {one_told['value']:+.3f} ({ends[0]:+.3f} to {ends[1]:+.3f})")
    return "\n".join(lines)
