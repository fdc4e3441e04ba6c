"""The page of a comparison: a sentence that follows the interval, a table, and short names."""

import numpy as np
import pytest

from viewalign.evaluation.comparison import Comparison, TaskComparison
from viewalign.evaluation.statistics import Difference
from viewalign.reports.comparison import render, rows, short_names


@pytest.mark.parametrize(
    ("a", "b", "short"),
    [
        ("/x/scratch/evaluation/fold-0", "/x/pretrained/evaluation/fold-0", ("scratch", "pretrained")),
        ("runs/a", "runs/b", ("a", "b")),
        ("/x/y/a", "/x/b", ("y/a", "b")),
        ("/x/a", "/x/a", ("a", "a")),
        ("run", "run/evaluation", ("run", "run/evaluation")),
    ],
)
def test_names_are_what_differs(a, b, short):
    assert short_names(a, b) == short


def segmentations(low, high, labels=("rim", "core")):
    one = Difference((low + high) / 2, (low, high), 0.0123, 8, 6, 2)
    values = np.linspace(0.5, 0.9, 8)
    return Comparison(
        "/home/me/scratch/evaluation/fold-0",
        "/home/me/<b>/evaluation/fold-0",
        tuple(f"case_{k}" for k in range(8)),
        {metric: dict.fromkeys((*labels, "mean"), one) for metric in ("dice", "nsd")},
        dict.fromkeys(("dice", "nsd"), (values, values + 0.02)),
        ("case_9",),
    )


@pytest.mark.parametrize(
    ("ends", "level", "words"),
    [
        ((0.01, 0.03), "good", "B (&lt;b&gt;) is better than A (scratch). Mean Dice +0.020 (95 % interval +0.010 to "
         "+0.030), over 8 cases; B scores higher in 6 and lower in 2."),
        ((-0.03, -0.01), "bad", "B (&lt;b&gt;) is worse than A (scratch). Mean Dice -0.020"),
        ((-0.01, 0.03), "watch", "could be shown, which does not show that there is none. Mean Dice +0.010"),
    ],
)  # fmt: skip
def test_the_sentence_follows_the_interval(ends, level, words):
    page = render(segmentations(*ends))
    assert f'<p class="verdict {level}">' in page
    assert words in page
    assert "because only one of them has a result: case_9" in page
    assert "/home/me" not in page


def test_few_cases_allow_no_statement():
    whole = segmentations(0.01, 0.03)
    one = Difference(0.02, None, None, 2, 2, 0)
    for by in whole.differences.values():
        by.update(dict.fromkeys(by, one))
    page = render(whole)
    assert "There are too few cases to tell whether B (&lt;b&gt;) is better" in page
    assert '<p class="verdict watch">' in page


def test_the_mean_comes_first_and_a_single_class_has_none():
    assert [row.label for row in rows(segmentations(0.01, 0.03))[:3]] == ["mean over classes", "rim", "core"]
    assert [row.label for row in rows(segmentations(0.01, 0.03, ("rim",)))] == ["rim", "rim"]


def task(primary, difference, kind):
    names = (primary, "other")
    return TaskComparison(
        a=dict.fromkeys(names, 5.0),
        b={primary: 5.0 + difference, "other": 5.0},
        intervals={primary: (difference - 0.1, difference + 0.1), "other": None},
        p_values={primary: 0.01, "other": None},
        cases=tuple("abcdef"),
        scores=(np.ones(6), np.ones(6)),
        kind=kind,
        primary=primary,
        names=("runs/a", "runs/b"),
    )


def test_a_lower_error_is_better():
    page = render(task("mae", -0.5, "regression"))
    assert "B (b) is better than A (a). Mean absolute error -0.500 (95 % interval -0.600 to -0.400)" in page
    assert "B has the larger error, which is worse" in page
    assert "B (b) is worse than A (a)" in render(task("auroc", -0.5, "binary"))


def test_the_primary_metric_is_the_first_row():
    assert [row.score for row in rows(task("auroc", 0.5, "binary"))] == ["AUROC", "other"]
