"""What a simple learner can tell of whole cases from vectors that are given: the first check of a pretraining.

Standardising, the choice of penalty or neighbours (inside the training cases, grouped by subject) and the fit all see
training cases alone. Each kind of features is judged on the same cases, so that differences are paired.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation import task_metrics
from viewalign.tasks.folds import Fold, check_learnable, strata
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.io import atomic_write
from viewalign.utils.rng import make_rng

Learner = Literal["linear", "knn"]
Array = NDArray[Any]

PENALTIES = tuple(float(value) for value in np.logspace(-4, 2, 7))
"""C of the logistic regression that are tried; alpha of ridge goes from 1e-1 to 1e5."""
ALPHAS = tuple(float(value) for value in np.logspace(-1, 5, 7))
NEIGHBOURS = (1, 3, 5, 9, 15, 25)
_INNER = 5


@dataclass(frozen=True)
class LinearProbeScore:
    """How one kind of features did.

    Attributes:
        values: figures over all cases that were judged.
        intervals: their 95 % bootstrap intervals over subjects.
        predicted: (N, K) probabilities or (N,) values, in the order of `cases`.
        cases: names of the cases that were judged.
        chosen: what the inner selection took, a fold each.
    """

    values: dict[str, float]
    intervals: dict[str, task_metrics.Interval | None]
    predicted: Array = field(repr=False)
    cases: tuple[str, ...] = field(repr=False)
    chosen: tuple[str, ...] = ()


def probe(
    features: Array,
    cases: Sequence[TaskCase],
    folds: Sequence[Fold],
    spec: TaskSpec,
    learner: Learner = "linear",
    draws: int = 1000,
    seed: int = 0,
) -> LinearProbeScore:
    """Judge features by a simple learner, each case by a model that has not seen its subject.

    Args:
        features: (N, C) in the order of `cases`.
        cases: with targets.
        folds: who learns and who is judged; several folds are judged together, once.
        spec: the task.
        learner: `linear` (logistic regression or ridge) or `knn` (cosine distance).
        draws: resamplings of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: training cases that lack a class.
    """
    where = {case.case: k for k, case in enumerate(cases)}
    parts, order, chosen = [], [], []
    for fold in folds:
        train = [where[name] for name in fold.train if name in where]
        held_out = [where[name] for name in fold.held_out if name in where]
        told, predicted = fit_and_predict(features, cases, train, held_out, spec, learner)
        parts.append(predicted)
        order += held_out
        chosen.append(told)
    judged = [cases[k] for k in order]
    return score(spec, judged, np.concatenate(parts), draws, seed, tuple(chosen))


def score(
    spec: TaskSpec, judged: Sequence[TaskCase], predicted: Array, draws: int, seed: int, chosen: tuple[str, ...] = ()
) -> LinearProbeScore:
    """Judge predictions of cases once, with intervals."""
    truth = np.array([case.target for case in judged])
    subjects = [case.subject for case in judged]
    values = task_metrics.evaluate(spec.kind, truth, predicted)
    ends = task_metrics.intervals(spec.kind, truth, predicted, subjects, draws, seed)
    return LinearProbeScore(values, ends, predicted, tuple(case.case for case in judged), chosen)


def fit_and_predict(
    features: Array,
    cases: Sequence[TaskCase],
    train: Sequence[int],
    held_out: Sequence[int],
    spec: TaskSpec,
    learner: Learner,
) -> tuple[str, Array]:
    """Fit on some rows and predict others; returns what the inner selection took, and the predictions."""
    from sklearn.model_selection import GridSearchCV

    taught = [cases[k] for k in train]
    check_learnable(taught, spec, "The probe")
    targets = np.array([case.target for case in taught])
    pipeline, grid, scoring = _learner(spec, learner, len(train))
    splits = _inner_splits(taught, spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if splits:
            search = GridSearchCV(pipeline, grid, scoring=scoring, cv=splits, error_score=np.nan)
            search.fit(features[list(train)], targets)
            fitted, told = search.best_estimator_, str(search.best_params_)
        else:
            middle = {name: values[len(values) // 2] for name, values in grid.items()}
            fitted, told = pipeline.set_params(**middle).fit(features[list(train)], targets), f"{middle} (no selection)"
        return told, _predict(fitted, features[list(held_out)], spec)


def _learner(spec: TaskSpec, learner: Learner, count: int) -> tuple[Any, dict[str, list[Any]], str]:
    """Return a pipeline, what of it is chosen, and by which figure."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    near = [k for k in NEIGHBOURS if k <= max(1, count // 2)]
    if spec.kind == "regression":
        if learner == "linear":
            return make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": list(ALPHAS)}, "neg_mean_absolute_error"
        model: Any = KNeighborsRegressor(metric="cosine", weights="distance")
        return (
            make_pipeline(StandardScaler(), model),
            {"kneighborsregressor__n_neighbors": near},
            "neg_mean_absolute_error",
        )
    grid: Sequence[float]
    if learner == "linear":
        model, name, grid = LogisticRegression(class_weight="balanced", max_iter=2000), "C", PENALTIES
    else:
        model, name, grid = KNeighborsClassifier(metric="cosine"), "n_neighbors", near
    if spec.kind == "multilabel":
        wrapped = make_pipeline(StandardScaler(), OneVsRestClassifier(model))
        return wrapped, {f"onevsrestclassifier__estimator__{name}": list(grid)}, "f1_macro"
    scoring = "neg_log_loss" if learner == "linear" else "balanced_accuracy"
    return make_pipeline(StandardScaler(), model), {f"{type(model).__name__.lower()}__{name}": list(grid)}, scoring


def _inner_splits(cases: Sequence[TaskCase], spec: TaskSpec) -> list[tuple[Array, Array]]:
    """Return splits of the training cases by subject in which each half knows every class; none where too few."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [case.subject for case in cases]
    classes = strata(cases, spec, _INNER)
    fewest = len(cases) if spec.kind == "regression" else int(np.bincount(classes)[np.unique(classes)].min())
    count = min(_INNER, fewest, len(set(groups)))
    kinds = strata(cases, spec, count)
    if count < 2:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = list(StratifiedGroupKFold(count).split(kinds, kinds, groups))
    if spec.kind == "regression":
        return [(a, b) for a, b in splits if len(a) and len(b)]
    every = set(kinds.tolist())
    return [(a, b) for a, b in splits if set(kinds[a].tolist()) == every == set(kinds[b].tolist())]


def _predict(fitted: Any, rows: Array, spec: TaskSpec) -> Array:
    if spec.kind == "regression":
        values = np.asarray(fitted.predict(rows), dtype=np.float64)
        return values if spec.range is None else values.clip(*spec.range)
    return np.asarray(fitted.predict_proba(rows), dtype=np.float64)


@dataclass(frozen=True)
class CurvePoint:
    """A point of a few-shot curve: the figure's mean and spread over draws of training cases."""

    shots: int
    mean: float
    low: float
    high: float
    draws: tuple[float, ...]


def few_shot_curve(
    features: Array,
    cases: Sequence[TaskCase],
    fold: Fold,
    spec: TaskSpec,
    shots: Sequence[int],
    repeats: int = 10,
    learner: Learner = "linear",
    seed: int = 0,
) -> list[CurvePoint]:
    """Judge features with few training cases, drawn several times; the judged cases stay the same.

    Args:
        features: (N, C) in the order of `cases`.
        cases: with targets.
        fold: from whose training cases is drawn, and who is judged.
        spec: the task.
        shots: cases of each class, or cases in all of a regression.
        repeats: draws of each number.
        learner: as in `probe`.
        seed: of the draws; they do not depend on the features, so that two kinds of them see the same cases.

    Returns:
        Per number of shots the primary figure's mean and 2.5th and 97.5th percentile over draws.
    """
    where = {case.case: k for k, case in enumerate(cases)}
    train, held_out = ([where[n] for n in names if n in where] for names in (fold.train, fold.held_out))
    truth = np.array([cases[k].target for k in held_out])
    points = []
    for count in shots:
        found = []
        for repeat in range(repeats):
            rows = draw_shots([cases[k] for k in train], spec, count, (seed, repeat))
            _, predicted = fit_and_predict(features, cases, [train[k] for k in rows], held_out, spec, learner)
            found.append(task_metrics.evaluate(spec.kind, truth, predicted)[spec.figure])
        low, high = np.nanquantile(found, [0.025, 0.975])
        points.append(CurvePoint(count, float(np.nanmean(found)), float(low), float(high), tuple(found)))
    return points


def draw_shots(cases: Sequence[TaskCase], spec: TaskSpec, count: int, key: tuple[int, int]) -> list[int]:
    """Draw `count` cases of each class, or `count` cases in all of a regression, without replacement.

    Raises:
        UserError: there are not so many.
    """
    rng = make_rng(*key, "shots")
    kinds = strata(cases, spec) if spec.kind != "regression" else np.zeros(len(cases), dtype=np.int64)
    rows: list[int] = []
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        if len(members) < count:
            raise UserError(f"{count} cases cannot be drawn of {len(members)}; ask for fewer shots.")
        rows += rng.choice(members, count, replace=False).tolist()
    return sorted(rows)


def as_json(
    scores: Mapping[str, LinearProbeScore], curves: Mapping[str, Sequence[CurvePoint]], spec: TaskSpec
) -> dict[str, Any]:
    """Return plain values of everything that was probed."""
    return {
        "task": spec.name,
        "kind": spec.kind,
        "primary": spec.figure,
        "features": {
            name: {
                "values": one.values,
                "intervals": {k: None if v is None else list(v) for k, v in one.intervals.items()},
                "chosen": list(one.chosen),
                "cases": list(one.cases),
                "predicted": one.predicted.tolist(),
            }
            for name, one in scores.items()
        },
        "curves": {
            name: [
                {"shots": p.shots, "mean": p.mean, "low": p.low, "high": p.high, "draws": list(p.draws)} for p in points
            ]
            for name, points in curves.items()
        },
    }


def write(path: Path, told: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
