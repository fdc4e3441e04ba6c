"""The page of a fine-tuned task: true figures, escaped names, curves equal to scikit-learn's."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import roc_curve
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.evaluation import task_metrics
from viewalign.evaluation.predictions import TaskPredictions, read_predictions, write_predictions
from viewalign.reports import task_charts
from viewalign.reports.charts import scripts
from viewalign.reports.page import score
from viewalign.reports.task import render, write_page
from viewalign.reports.task_verdict import assess
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec, write_spec

CLASSES = {"binary": ["no", "<yes>"], "multiclass": ["a", "b", "c"], "multilabel": ["p", "q"], "regression": []}


def make(folder, kind, count=60):
    spec = TaskSpec.model_validate(
        {"name": "<task>", "kind": kind, "classes": CLASSES[kind], "channels": [{"name": "t1"}], "unit": "years"}
    )
    rng, k = np.random.default_rng(0), len(CLASSES[kind])
    if kind == "regression":
        truth = rng.uniform(40, 90, count)
        predicted = (65 + 0.6 * (truth - 65) + 5 * rng.normal(size=count))[:, None]
    elif kind == "multilabel":
        truth = rng.integers(0, 2, (count, k))
        predicted = 1 / (1 + np.exp(-(2 * truth - 1 + rng.normal(size=(count, k)))))
    else:
        truth = np.arange(count) % k
        logits = 1.2 * np.eye(k)[truth] + rng.normal(size=(count, k))
        predicted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = [tuple(map(int, t)) if kind == "multilabel" else t.item() for t in truth]
    cases = [TaskCase(f"<case>{n:02d}", f"s{n}", {}, target=t) for n, t in enumerate(targets)]
    rows = {c.case: (str(n % 3), predicted[n]) for n, c in enumerate(cases)}
    write_spec(spec, folder)
    write_predictions(folder / "predictions.csv", cases, rows, spec)
    flat = predicted[:, 0] if kind == "regression" else predicted
    values = task_metrics.evaluate(kind, truth, flat)
    ends = task_metrics.intervals(kind, truth, flat, [c.subject for c in cases], 100)
    told = {"network": "resenc-xs", "held_out": {"cases": count, "values": values, "intervals": ends}}
    (folder / "metrics.json").write_text(json.dumps(told))
    (folder / "refused.json").write_text(json.dumps([["<bad>", "a & b"]]))
    for fold in range(3):
        (folder / f"fold_{fold}").mkdir()
        (folder / f"fold_{fold}" / "losses.json").write_text(json.dumps((0.7 * 0.9 ** np.arange(20 + fold)).tolist()))
    return folder


@pytest.mark.parametrize("kind", list(CLASSES))
def test_every_kind_has_its_page(tmp_path, kind):
    text = render(make(tmp_path / "run", kind))
    text = text.replace(scripts()["plotly"], "")
    for raw in ("<task>", "<case>", "<yes>", "<bad>"):
        assert raw not in text
    assert "&lt;bad&gt;" in text
    assert "a &amp; b" in text
    outcomes = read_predictions(tmp_path / "run")
    value = task_metrics.evaluate(kind, outcomes.truth, outcomes.predicted)[outcomes.spec.figure]
    assert score(value) in re.search(r'class="headline number">(.*?)<', text)[1]
    titles = re.findall(r"<figcaption><strong>(.*?)</strong>", text)
    first = (
        ["Predicted against true", "Errors"]
        if kind == "regression"
        else ["ROC curve", "Precision and recall", "Calibration"]
    )
    assert titles == [*first, "Training loss"]
    assert text.count("<tr><td>fold ") == 3
    assert re.search(r'class="verdict (good|watch|bad)"', text)
    assert "predicting the " in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert not re.search(r"\bnan\b", text.lower())


def outcomes_of(kind, truth, predicted, classes=()):
    spec = {"name": "t", "kind": kind, "classes": list(classes), "channels": [{"name": "t1"}]}
    names = tuple(f"c{k}" for k in range(len(truth)))
    spec = TaskSpec.model_validate({**spec, "unit": "years" if kind == "regression" else ""})
    return TaskPredictions(spec, names, names, ("0",) * len(truth), np.array(truth), np.array(predicted, float))


def test_a_regression_that_learnt_nothing_is_called_so():
    rng = np.random.default_rng(0)
    truth = rng.uniform(20, 80, 40)
    found = assess(outcomes_of("regression", truth, 53.5 + rng.normal(0, 0.1, 40)), "Mean absolute error")
    assert found.level != "good"
    assert "better than predicting the mean for every case" in found.sentence
    assert found.sentence.endswith("All predictions are close to 53.5 years.")
    assert found.values["r2"] == pytest.approx(0)
    good = assess(outcomes_of("regression", truth, truth + rng.normal(0, 3, 40)), "Mean absolute error")
    assert good.level == "good"
    assert good.sentence.startswith("Better than predicting the mean for every case (")


def test_an_auroc_of_a_quarter_is_called_worse_than_the_majority():
    rng = np.random.default_rng(0)
    truth = np.arange(60) % 2
    score = 1 / (1 + np.exp(1.2 * (2 * truth - 1) + rng.normal(size=60)))
    outcomes = outcomes_of("binary", truth, np.stack([1 - score, score], 1), ("no", "yes"))
    found = assess(outcomes, "AUROC", (0.1, 0.4))
    assert found.level == "bad"
    assert "Worse than predicting the majority class" in found.sentence
    assert "check the order of the classes" in found.sentence
    assert found.values["auroc"] == 0.5
    assert found.values["accuracy"] == 0.5


def test_one_predicted_class_and_too_few_subjects_are_named():
    truth = np.array([0, 1, 2, 1])
    predicted = np.tile([0.2, 0.5, 0.3], (4, 1))
    found = assess(outcomes_of("multiclass", truth, predicted, ("a", "b", "c")), "Balanced accuracy")
    assert found.level == "watch"
    assert "too few subjects" in found.sentence
    assert found.sentence.endswith("Every case is predicted as b.")


def test_the_roc_curve_is_scikit_learns(tmp_path):
    outcomes = read_predictions(make(tmp_path / "run", "binary"))
    chart = next(c for c in task_charts.charts(outcomes) if c.title == "ROC curve")
    drawn = next(trace for trace in chart.figure["data"] if trace["showlegend"])
    across, up, _ = roc_curve(outcomes.truth, outcomes.predicted[:, 1])
    assert drawn["x"] == pytest.approx(across)
    assert drawn["y"] == pytest.approx(up)
    assert drawn["name"].startswith("&lt;yes&gt;: 0.")


def test_wilsons_interval_is_scipys():
    from scipy.stats import binomtest

    for hits, count in ((0, 5), (3, 7), (20, 20)):
        ends = binomtest(hits, count).proportion_ci(method="wilson")
        assert task_charts.wilson(hits, count) == pytest.approx((ends.low, ends.high), abs=1e-7)


@pytest.mark.slow
def test_one_class_alone_has_no_roc_and_the_command_writes(tmp_path):
    run = make(tmp_path / "run", "binary")
    outcomes = read_predictions(run)
    only = outcomes.select([k for k, t in enumerate(outcomes.truth) if t == 1])
    assert [c.title for c in task_charts.charts(only)] == ["Calibration"]
    told = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "page.html")])
    assert told.exit_code == 0, told.output
    assert (tmp_path / "page.html").read_text() == write_page(run).read_text()
