"""Linear and k-NN probes: simple models fitted to fixed feature vectors of whole cases.

Standardisation (not for `sgd`), the choice of penalty, neighbours or learning rate (on other subjects) and the fit use
training cases only. All features are evaluated on the same cases, so that differences are paired.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation import sgd_probe, task_metrics
from viewalign.evaluation.task_metrics import TaskScore, score_predictions
from viewalign.tasks.folds import Fold, check_learnable, strata
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.rng import make_rng

Learner = Literal["linear", "knn", "sgd"]
Array = NDArray[Any]

PENALTIES = tuple(float(value) for value in np.logspace(-4, 2, 7))
"""Candidate inverse penalties C of the logistic regression."""
ALPHAS = tuple(float(value) for value in np.logspace(-1, 5, 7))
"""Candidate penalties of ridge regression."""
NEIGHBOURS = (1, 3, 5, 9, 15, 25)
_INNER_FOLDS = 5


def probe(
    features: Array,
    cases: Sequence[TaskCase],
    folds: Sequence[Fold],
    spec: TaskSpec,
    learner: Learner = "linear",
    draws: int = 1000,
    seed: int = 0,
) -> TaskScore:
    """Evaluate features by a probe fitted on each fold's training cases, over all held-out cases together.

    Args:
        features: (N, C) in the order of `cases`.
        cases: with targets.
        folds: training and held-out cases.
        spec: the task.
        learner: `linear` (logistic regression or ridge), `knn` (cosine distance) or `sgd` (`sgd_probe`).
        draws: number of bootstrap samples.
        seed: of the bootstrap.

    Raises:
        UserError: training cases that lack a class.
    """
    index = {case.case: k for k, case in enumerate(cases)}
    predicted, order, chosen = [], [], []
    for fold in folds:
        train, held_out = ([index[name] for name in names if name in index] for names in (fold.train, fold.held_out))
        parameters, values = fit_and_predict(features, cases, train, held_out, spec, learner)
        predicted.append(values)
        order += held_out
        chosen.append(parameters)
    return score_predictions(spec, [cases[k] for k in order], np.concatenate(predicted), draws, seed, tuple(chosen))


def fit_and_predict(
    features: Array,
    cases: Sequence[TaskCase],
    train: Sequence[int],
    held_out: Sequence[int],
    spec: TaskSpec,
    learner: Learner,
) -> tuple[str, Array]:
    """Fit on the rows `train` and predict the rows `held_out`; return chosen hyperparameters and predictions."""
    from sklearn.model_selection import GridSearchCV

    train_cases = [cases[k] for k in train]
    check_learnable(train_cases, spec, "The probe")
    if learner == "sgd":
        return _fit_heads(features, train_cases, train, held_out, spec)
    targets = np.array([case.target for case in train_cases])
    pipeline, grid, scoring = _pipeline(spec, learner, len(train))
    splits = _inner_splits(train_cases, spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if splits:
            search = GridSearchCV(pipeline, grid, scoring=scoring, cv=splits, error_score=np.nan)
            search.fit(features[list(train)], targets)
            fitted, chosen = search.best_estimator_, str(search.best_params_)
        else:
            middle = {name: values[len(values) // 2] for name, values in grid.items()}
            fitted = pipeline.set_params(**middle).fit(features[list(train)], targets)
            chosen = f"{middle} (no selection)"
        return chosen, _predict(fitted, features[list(held_out)], spec)


def _fit_heads(
    features: Array, train_cases: Sequence[TaskCase], train: Sequence[int], held_out: Sequence[int], spec: TaskSpec
) -> tuple[str, Array]:
    """Train heads on four fifths of the training cases and choose one on the others."""
    splits = _head_splits(train_cases, spec)
    rows, targets = features[list(train)], np.array([case.target for case in train_cases])
    fit, validate = splits[0]
    validation = rows[validate], targets[validate]
    head = sgd_probe.best_head(sgd_probe.fit_heads(rows[fit], targets[fit], len(spec.classes), validation))
    return f"rate {head.rate:g}", head.probabilities(features[list(held_out)])


def _head_splits(cases: Sequence[TaskCase], spec: TaskSpec) -> list[tuple[Array, Array]]:
    """Return the splits from which `sgd` takes its validation cases.

    Raises:
        UserError: a task of another kind, or too few subjects.
    """
    if spec.kind not in ("binary", "multiclass"):
        raise UserError(f"learners=sgd is for tasks with one true class; {spec.name} is a {spec.kind} task.")
    splits = _inner_splits(cases, spec)
    if not splits:
        raise UserError(
            "learners=sgd needs two or more subjects of each class to choose the learning rate; use linear."
        )
    return splits


def check_learners(
    cases: Sequence[TaskCase],
    folds: Sequence[Fold],
    spec: TaskSpec,
    learners: Sequence[Learner],
    shots: Sequence[int] = (),
    seed: int = 0,
) -> None:
    """Check, without features, that `probe` can fit all learners and `few_shot_curve` the first one.

    Args:
        cases: with targets.
        folds: training and held-out cases; few shots are drawn from the first.
        spec: the task.
        learners: of `probe`.
        shots, seed: of `few_shot_curve`.

    Raises:
        UserError: training cases that lack a class, a task that a learner is not for, or too few cases.
    """
    by_name = {case.case: case for case in cases}
    parts = [[by_name[name] for name in fold.train if name in by_name] for fold in folds]
    for part in parts:
        check_learnable(part, spec, "The probe")
        if "sgd" in learners:
            _head_splits(part, spec)
    if spec.kind == "regression" and 1 in shots:
        raise UserError("shots=1 is too few for a regression, which needs different targets; use shots=2 or more.")
    for count in shots:
        drawn = draw_shots(parts[0], spec, count, (seed, 0))
        if learners[0] == "sgd":
            _head_splits([parts[0][k] for k in drawn], spec)


def _pipeline(spec: TaskSpec, learner: Learner, count: int) -> tuple[Any, dict[str, list[Any]], str]:
    """Return a pipeline, its hyperparameter grid, and the score for selection."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    linear, regression = learner == "linear", spec.kind == "regression"
    neighbours = [k for k in NEIGHBOURS if k <= max(1, count // 2)]
    model: Any
    if regression:
        model = Ridge() if linear else KNeighborsRegressor(metric="cosine", weights="distance")
        key, scoring = ("alpha" if linear else "n_neighbors"), "neg_mean_absolute_error"
    else:
        balanced = {"class_weight": "balanced", "max_iter": 2000}
        model = LogisticRegression(**balanced) if linear else KNeighborsClassifier(metric="cosine")
        key, scoring = ("C", "neg_log_loss") if linear else ("n_neighbors", "balanced_accuracy")
    values = neighbours if not linear else list(ALPHAS if regression else PENALTIES)
    name = type(model).__name__.lower()
    if spec.kind == "multilabel":
        model, name, scoring = OneVsRestClassifier(model), "onevsrestclassifier__estimator", "f1_macro"
    return make_pipeline(StandardScaler(), model), {f"{name}__{key}": values}, scoring


def _inner_splits(cases: Sequence[TaskCase], spec: TaskSpec) -> list[tuple[Array, Array]]:
    """Return cross-validation splits by subject; empty if there are too few cases.

    Both parts have every class if cases have one; the training part of a multilabel task has different targets.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [case.subject for case in cases]
    fewest = len(cases)
    if spec.kind in ("binary", "multiclass"):
        classes = strata(cases, spec, _INNER_FOLDS)
        fewest = int(np.bincount(classes)[np.unique(classes)].min())
    count = min(_INNER_FOLDS, fewest, len(set(groups)))
    if count < 2:
        return []
    classes = strata(cases, spec, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = list(StratifiedGroupKFold(count).split(classes, classes, groups))
    if spec.kind == "regression":
        return [(a, b) for a, b in splits if len(a) and len(b)]
    if spec.kind == "multilabel":
        return [(a, b) for a, b in splits if len(b) and len({cases[k].target for k in a}) > 1]
    every = set(classes.tolist())
    return [(a, b) for a, b in splits if set(classes[a].tolist()) == every == set(classes[b].tolist())]


def _predict(fitted: Any, rows: Array, spec: TaskSpec) -> Array:
    if spec.kind == "regression":
        values = np.asarray(fitted.predict(rows), dtype=np.float64)
        return values if spec.range is None else values.clip(*spec.range)
    probabilities = np.asarray(fitted.predict_proba(rows), dtype=np.float64)
    return probabilities[:, -len(spec.classes) :]  # a single label also has a column of its absence, before its own


@dataclass(frozen=True)
class CurvePoint:
    """A point of a few-shot curve: mean and 2.5th and 97.5th percentile of the primary metric over samples."""

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
    """Evaluate features with few, repeatedly sampled training cases on the same held-out cases.

    Args:
        features: (N, C) in the order of `cases`.
        cases: with targets.
        fold: its training cases are sampled from, and its held-out cases are evaluated.
        spec: the task.
        shots: numbers of training cases per class, see `draw_shots`.
        repeats: samples of each number.
        learner: as in `probe`.
        seed: of the sampling, which does not depend on the features.
    """
    index = {case.case: k for k, case in enumerate(cases)}
    train, held_out = ([index[n] for n in names if n in index] for names in (fold.train, fold.held_out))
    truth = np.array([cases[k].target for k in held_out])
    points = []
    for count in shots:
        values = []
        for repeat in range(repeats):
            rows = draw_shots([cases[k] for k in train], spec, count, (seed, repeat))
            _, predicted = fit_and_predict(features, cases, [train[k] for k in rows], held_out, spec, learner)
            values.append(task_metrics.evaluate(spec.kind, truth, predicted)[spec.figure])
        low, high = np.nanquantile(values, [0.025, 0.975])
        points.append(CurvePoint(count, float(np.nanmean(values)), float(low), float(high), tuple(values)))
    return points


def draw_shots(cases: Sequence[TaskCase], spec: TaskSpec, count: int, key: tuple[int, int]) -> list[int]:
    """Sample cases without replacement: `count` of each class, or in total for a regression; return their indices.

    Cases of a regression are sampled again if all have one target although others differ. Of a multilabel task, each
    label has at least `count` cases with it and `count` without it, or all of them if there are fewer.

    Raises:
        UserError: there are fewer cases.
    """
    rng = make_rng(*key, "shots")
    if spec.kind == "multilabel":
        return _draw_labels(cases, count, rng)
    regression = spec.kind == "regression"
    classes = np.zeros(len(cases), dtype=np.int64) if regression else strata(cases, spec)
    rows = _draw_classes(classes, count, rng)
    if regression and count > 1 and len({case.target for case in cases}) > 1:
        while len({cases[k].target for k in rows}) == 1:
            rows = _draw_classes(classes, count, rng)
    return rows


def _draw_classes(classes: Array, count: int, rng: np.random.Generator) -> list[int]:
    rows: list[int] = []
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        if len(members) < count:
            raise UserError(f"{count} cases cannot be sampled from {len(members)}; use fewer shots.")
        rows += rng.choice(members, count, replace=False).tolist()
    return sorted(rows)


def _draw_labels(cases: Sequence[TaskCase], count: int, rng: np.random.Generator) -> list[int]:
    """Fill up the cases with and without each label in random order, the rarest first."""
    if len(cases) < count:
        raise UserError(f"{count} cases cannot be sampled from {len(cases)}; use fewer shots.")
    labels = np.array([case.target for case in cases])
    order = rng.permutation(len(cases))
    wanted = [labels[:, k] == value for k in range(labels.shape[1]) for value in (1, 0)]
    chosen = np.zeros(len(cases), dtype=bool)
    for members in sorted(wanted, key=np.count_nonzero):
        missing = max(0, count - int((members & chosen).sum()))
        chosen[[k for k in order if members[k] and not chosen[k]][:missing]] = True
    return np.flatnonzero(chosen).tolist()
