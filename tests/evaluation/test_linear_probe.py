"""Linear and k-NN probes: informative features are detected, noise is at chance, held-out cases do not leak."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from viewalign.errors import UserError
from viewalign.evaluation import linear_probe
from viewalign.tasks.folds import Fold, make_folds
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec

pytestmark = pytest.mark.slow

KINDS = {"binary": ["n", "y"], "multiclass": ["a", "b", "c"], "multilabel": ["p", "q"], "regression": []}


def made_up(kind, count=40, signal=4.0, seed=0):
    rng = np.random.default_rng(seed)
    spec = TaskSpec.model_validate({"name": "x", "kind": kind, "channels": [{"name": "a"}], "classes": KINDS[kind]})
    if kind == "regression":
        targets = rng.normal(50, 10, count).tolist()
        told = np.array(targets)[:, None] / 10
    elif kind == "multilabel":
        targets = [tuple(int(v) for v in row) for row in rng.integers(0, 2, (count, 2))]
        told = np.array(targets)
    else:
        targets = (np.arange(count) % len(KINDS[kind])).tolist()
        told = np.eye(len(KINDS[kind]))[targets]
    features = rng.normal(size=(count, 6))
    features[:, : told.shape[1]] += signal * told
    cases = [TaskCase(f"c{k:02d}", f"c{k:02d}", {"a": Path("x")}, target=t) for k, t in enumerate(targets)]
    return spec, cases, features


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("learner", ["linear", "knn"])
def test_informative_features_are_detected(kind, learner):
    spec, cases, features = made_up(kind)
    folds = make_folds(cases, spec, 3).folds
    score = linear_probe.probe(features, cases, folds, spec, learner, draws=30)
    figure = {"regression": "pearson", "multilabel": "auroc"}.get(kind, "balanced_accuracy")
    assert score.values[figure] > (0.85 if learner == "linear" else 0.6)
    assert sorted(score.cases) == [case.case for case in cases]
    low, high = score.intervals[figure]
    assert low <= score.values[figure] <= high


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_sgd_heads_detect_informative_features(kind):
    spec, cases, features = made_up(kind, 60)
    score = linear_probe.probe(features, cases, make_folds(cases, spec, 2).folds, spec, "sgd", draws=100)
    assert score.values["auroc"] > 0.9
    assert all(chosen.startswith("rate ") for chosen in score.chosen)


def test_sgd_heads_are_for_one_true_class_with_validation_cases():
    spec, cases, features = made_up("regression")
    with pytest.raises(UserError, match="a regression task"):
        linear_probe.fit_and_predict(features, cases, range(30), range(30, 40), spec, "sgd")
    spec, cases, features = made_up("binary")
    with pytest.raises(UserError, match="two or more subjects"):
        linear_probe.fit_and_predict(features, cases, [0, 1], range(30, 40), spec, "sgd")


def test_noise_is_at_chance():
    spec, cases, features = made_up("binary", 80, signal=0.0)
    score = linear_probe.probe(features, cases, make_folds(cases, spec, 4).folds, spec, draws=30)
    assert 0.3 < score.values["auroc"] < 0.7


def test_held_out_features_do_not_change_the_fit():
    """Features of evaluated cases do not affect the others' predictions, to the last bit."""
    spec, cases, features = made_up("regression")
    train, held_out = list(range(30)), list(range(30, 40))
    _, before = linear_probe.fit_and_predict(features, cases, train, held_out, spec, "linear")
    wild = features.copy()
    wild[39] *= 1e6
    _, after = linear_probe.fit_and_predict(wild, cases, train, held_out, spec, "linear")
    np.testing.assert_array_equal(before[:-1], after[:-1])


def test_predictions_stay_within_the_range():
    spec, cases, features = made_up("regression")
    spec = spec.model_copy(update={"range": (45.0, 55.0)})
    _, predicted = linear_probe.fit_and_predict(features, cases, range(30), range(30, 40), spec, "linear")
    assert predicted.min() >= 45
    assert predicted.max() <= 55


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_more_shots_help_and_draws_are_the_same_for_all_features(kind):
    spec, cases, features = made_up(kind, 80, signal=1.5)
    fold = make_folds(cases, spec, 2).folds[0]
    few, many = linear_probe.few_shot_curve(features, cases, fold, spec, (3, 15), repeats=5)
    assert (many.mean < few.mean) if kind == "regression" else (many.mean > few.mean)
    assert few.low <= few.mean <= few.high
    assert len(few.draws) == 5
    rows = linear_probe.draw_shots(cases, spec, 3, (0, 1))
    assert rows == linear_probe.draw_shots(cases, spec, 3, (0, 1)) != linear_probe.draw_shots(cases, spec, 3, (0, 2))
    assert len(rows) == (6 if kind == "binary" else 3)
    with pytest.raises(UserError, match="500"):
        linear_probe.draw_shots(cases, spec, 500, (0, 0))


def test_a_class_without_training_cases_is_an_error():
    spec, cases, features = made_up("binary")
    with pytest.raises(UserError, match="class y"):
        linear_probe.fit_and_predict(features, cases, range(0, 20, 2), [1, 3], spec, "linear")


@pytest.mark.parametrize("learner", ["linear", "knn"])
def test_a_single_label_is_scored_by_its_presence(learner):
    spec, cases, features = made_up("binary")
    spec = spec.model_copy(update={"kind": "multilabel", "classes": ("p",)})
    cases = [replace(case, target=(case.target,)) for case in cases]
    _, predicted = linear_probe.fit_and_predict(features, cases, range(30), range(30, 40), spec, learner)
    assert predicted.shape == (10, 1)
    present = np.arange(30, 40) % 2 == 1
    assert predicted[present].min() > predicted[~present].max()


def with_findings(count=60, labels=8):
    """Cases whose label combinations are nearly all different."""
    rng = np.random.default_rng(0)
    spec, _, _ = made_up("multilabel", 2)
    spec = spec.model_copy(update={"classes": tuple(f"l{k}" for k in range(labels))})
    targets = [tuple(row) for row in (rng.random((count, labels)) < 0.3).astype(int).tolist()]
    return spec, [TaskCase(f"c{k:02d}", f"c{k:02d}", {"a": Path("x")}, target=t) for k, t in enumerate(targets)]


def test_the_penalty_is_chosen_for_rare_label_combinations():
    spec, cases = with_findings()
    splits = linear_probe._inner_splits(cases, spec)
    assert len(splits) == 5
    assert sorted(np.concatenate([held_out for _, held_out in splits]).tolist()) == list(range(60))


def test_shots_of_a_multilabel_task_are_cases_with_and_without_each_label():
    spec, cases = with_findings()
    rows = linear_probe.draw_shots(cases, spec, 3, (0, 1))
    assert rows == linear_probe.draw_shots(cases, spec, 3, (0, 1)) != linear_probe.draw_shots(cases, spec, 3, (0, 2))
    labels = np.array([case.target for case in cases])
    enough = np.minimum(3, labels.sum(axis=0))
    assert len(set(rows)) == len(rows) <= 24
    assert (labels[rows].sum(axis=0) >= enough).all()
    assert ((1 - labels[rows]).sum(axis=0) >= 3).all()
    with pytest.raises(UserError, match="500 cases cannot be sampled from 60"):
        linear_probe.draw_shots(cases, spec, 500, (0, 0))


def test_few_shots_of_an_ordinal_regression_have_different_targets():
    spec, cases, features = made_up("regression")
    cases = [replace(case, target=float(k % 8 == 0)) for k, case in enumerate(cases)]
    fold = Fold(0, tuple(case.case for case in cases[:30]), tuple(case.case for case in cases[30:]))
    (point,) = linear_probe.few_shot_curve(features, cases, fold, spec, (2,), repeats=4)
    assert np.isfinite(point.draws).all()


@pytest.mark.parametrize(
    ("kind", "learners", "shots", "told"),
    [
        ("regression", ("linear", "sgd"), (), "learners=sgd is for tasks with one true class"),
        ("regression", ("linear",), (1,), "shots=1 is too few"),
        ("binary", ("linear",), (5, 16), "16 cases cannot be sampled from 15"),
        ("binary", ("sgd",), (1,), "two or more subjects of each class"),
        ("multilabel", ("linear",), (2,), None),
        ("binary", ("linear", "sgd"), (1,), None),
    ],
)
def test_what_is_known_without_features(kind, learners, shots, told):
    spec, cases, _ = made_up(kind)
    names = [case.case for case in cases]
    folds = [Fold(0, tuple(names[:30]), tuple(names[30:]))]
    with nullcontext() if told is None else pytest.raises(UserError, match=told):
        linear_probe.check_learners(cases, folds, spec, learners, shots)
