"""Comparison of two runs: differences, permutation tests, and one command for all kinds of results."""

import itertools
import json
import tracemalloc
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.evaluation import comparison as comparing
from viewalign.evaluation import statistics
from viewalign.evaluation.comparison import compare_any, compare_runs, exchange_p_values
from viewalign.evaluation.predictions import TaskPredictions, read_predictions, write_predictions
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec, write_spec

AGE = TaskSpec.model_validate({"name": "age", "kind": "regression", "channels": [{"name": "t1"}]})
SICK = TaskSpec.model_validate(
    {"name": "sick", "kind": "binary", "classes": ["no", "yes"], "channels": [{"name": "t1"}]}
)


def write_run(folder, spec, cases, predicted):
    write_spec(spec, folder)
    rows = {c.case: ("0", np.atleast_1d(p)) for c, p in zip(cases, predicted, strict=True)}
    write_predictions(folder / "predictions.csv", cases, rows, spec)
    return folder


def ages(count=20):
    return [TaskCase(f"c{k:02d}", f"s{k // 2}", {}, target=float(50 + k)) for k in range(count)]


def test_the_better_run_is_detected(tmp_path):
    rng, cases = np.random.default_rng(0), ages()
    for name, error in (("a", 6.0), ("b", 1.0)):
        write_run(tmp_path / name, AGE, cases, [c.target + error * rng.normal() for c in cases])
    result = compare_runs(tmp_path / "a", tmp_path / "b", draws=200)
    assert len(result.cases) == 20
    assert result.b["mae"] < result.a["mae"]
    assert result.intervals["mae"][1] < 0
    assert result.p_values["mae"] < 0.02
    np.testing.assert_allclose(result.scores[1].mean(), result.b["mae"])
    assert "lower is better" in result.table()


def test_test_cases_are_not_mixed_with_those_held_out(tmp_path):
    cases = ages(12)
    for name, off in (("a", 5.0), ("b", 1.0)):
        write_spec(AGE, tmp_path / name)
        rows = {c.case: ("test" if k < 6 else "0", np.array([c.target + off])) for k, c in enumerate(cases)}
        write_predictions(tmp_path / name / "predictions.csv", cases, rows, AGE)
    assert compare_runs(tmp_path / "a", tmp_path / "b", draws=100).cases == tuple(c.case for c in cases[:6])
    write_run(tmp_path / "c", AGE, cases, [c.target for c in cases])
    assert compare_runs(tmp_path / "a", tmp_path / "c", draws=100).cases == tuple(c.case for c in cases[6:])


def test_a_p_value_is_that_of_all_exchanges_of_subjects():
    rng = np.random.default_rng(1)
    truth, a, b = (rng.normal(size=12) for _ in range(3))
    people = np.repeat(np.arange(6), 2)
    left = TaskPredictions(AGE, tuple("abcdefghijkl"), tuple(map(str, people)), ("0",) * 12, truth, a)
    gain = np.abs(b - truth) - np.abs(a - truth)
    means = [
        np.mean(gain * np.array(signs)[people]) for signs in itertools.product((1, -1), repeat=6)
    ]  # the mean absolute error's difference under each exchange, worked out by itself
    expected = np.mean(np.abs(means) >= abs(gain.mean()) - 1e-12)
    assert exchange_p_values(left, b)["mae"] == pytest.approx(expected)
    assert exchange_p_values(left, a)["mae"] == 1.0


def test_p_values_are_uniform_without_a_difference():
    found = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        truth, a, b = (rng.normal(size=6) for _ in range(3))
        left = TaskPredictions(AGE, tuple(map(str, range(6))), tuple(map(str, range(6))), ("0",) * 6, truth, a)
        found.append(exchange_p_values(left, b, draws=64)["mae"])
    assert np.mean(np.array(found) <= 0.2) < 0.4
    assert 0.3 < np.mean(found) < 0.7


@pytest.mark.parametrize("spec", [AGE, SICK])
def test_one_command_compares_fine_tunings(tmp_path, spec, monkeypatch):
    monkeypatch.setattr(comparing, "compare_runs", partial(compare_runs, draws=100))
    rng = np.random.default_rng(2)
    cases = [TaskCase(c.case, c.subject, {}, target=c.target if spec is AGE else k % 2) for k, c in enumerate(ages())]
    for name in ("a", "<b>"):
        p = rng.random(20)
        write_run(tmp_path / name, spec, cases, 50 + 20 * p if spec is AGE else np.stack([1 - p, p], 1))
    out = tmp_path / "out"
    told = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "<b>"), "-o", str(out)])
    assert told.exit_code == 0, told.output
    figures = json.loads((out / "comparison.json").read_text())["figures"]
    assert 0 < figures["mae" if spec is AGE else "auroc"]["p_value"] <= 1
    page = (out / "comparison.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count(": A 0.") == 20 if spec is SICK else page.count(": A ") == 20


def test_runs_that_cannot_be_compared_are_errors(tmp_path):
    cases = ages(6)
    a = write_run(tmp_path / "a", AGE, cases, range(6))
    write_run(tmp_path / "b", AGE, [TaskCase("x", "x", {}, target=1.0)], [1.0])
    with pytest.raises(UserError, match="in common"):
        compare_any(a, tmp_path / "b")
    other = [TaskCase(c.case, c.subject, {}, target=c.target + (k == 3)) for k, c in enumerate(cases)]
    with pytest.raises(UserError, match="c03"):
        compare_any(a, write_run(tmp_path / "c", AGE, other, range(6)))
    (tmp_path / "evaluation").mkdir()
    with pytest.raises(UserError, match=r"predictions\.csv"):
        compare_any(tmp_path / "evaluation", a)
    (a / "predictions.csv").write_text("case,target\nx,1\n")
    with pytest.raises(UserError, match=r"predictions\.csv"):
        read_predictions(a)


def test_a_permutation_test_takes_little_memory_and_gives_the_same_value(monkeypatch):
    rng = np.random.default_rng(0)
    first = rng.random(400)
    second = first + 0.02 * rng.normal(size=400)
    tracemalloc.start()
    few = statistics.paired(first, second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    monkeypatch.setattr(statistics, "_VALUES_AT_ONCE", 1 << 40)
    assert statistics.paired(first, second) == few
