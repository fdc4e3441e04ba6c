"""The verdict on a segmentation states its scores and what is conspicuous, and rates no score by itself."""

import numpy as np
import pytest

from viewalign.evaluation.results import Evaluation
from viewalign.evaluation.segmentation_metrics import CaseScore, ClassScore, Rules
from viewalign.reports.segmentation_verdict import assess

RULES = Rules({"rim": (1,), "core": (2,)}, {"rim": 1.0, "core": 1.0})


def evaluation(rim, core=None, **more):
    """Return an evaluation with the Dice of each case; a tuple is (Dice, reference voxels, predicted voxels)."""
    pairs = zip(rim, core or rim, strict=True)

    def one(value):
        dice, truth, guess = value if isinstance(value, tuple) else (value, 10, 10)
        return ClassScore(dice, dice, truth, guess)

    cases = [CaseScore(f"case_{k}", {"rim": one(a), "core": one(b)}, "", "") for k, (a, b) in enumerate(pairs)]
    return Evaluation(RULES, tuple(cases), **more)


EVEN = [0.80, 0.82, 0.84, 0.81, 0.83, 0.82, 0.81, 0.84]


def test_an_inconspicuous_result_has_a_score_and_no_finding():
    verdict = assess({"fold 0": evaluation(EVEN)}, {})
    assert (verdict.level, verdict.findings) == ("good", ())
    assert verdict.sentence.startswith("Mean Dice 0.821 over 8 cases (95 % interval 0.8")
    assert "conspicuously" in verdict.sentence


@pytest.mark.parametrize(
    ("more", "level", "words"),
    [
        ({"core": [0.0, *EVEN[1:]]}, "watch", "core was missed in 1 of 8 cases that have it: case_0 (fold 0)."),
        ({"core": [0.0] * 5 + EVEN[5:]}, "bad", "core was missed in 5 of 8 cases that have it"),
        ({"core": [(0.0, 0, 7), *EVEN[1:]]}, "watch", "core was found where it is absent: case_0 (fold 0)."),
        ({"core": [(np.nan, 0, 0), *EVEN[1:]]}, "good", ""),
        ({"core": [0.2, *EVEN[1:]]}, "watch", "Far below the median of 0.820 (fold 0): case_0 (0.500)."),
        ({"missing": ("case_9",)}, "watch", "Without a score, and in no mean: case_9."),
        ({"excluded": {"case_9": "other size"}}, "watch", "Without a score, and in no mean: case_9."),
    ],
)
def test_what_is_conspicuous_is_named(more, level, words):
    verdict = assess({"fold 0": evaluation(EVEN, **more)}, {})
    assert (verdict.level, words in " ".join(verdict.findings)) == (level, True)
    assert bool(verdict.findings) == bool(words)


def test_a_low_score_alone_is_no_finding():
    assert assess({"fold 0": evaluation([value / 4 for value in EVEN])}, {}).level == "good"


def test_few_cases_and_several_splits():
    few = assess({"fold 0": evaluation([0.8, 0.9])}, {})
    assert (few.level, few.sentence) == ("watch", "Mean Dice 0.850 over 2 cases: too few for an interval.")
    two = assess({"fold 0": evaluation(EVEN), "fold 1": evaluation([value - 0.1 for value in EVEN])}, {})
    assert two.sentence.startswith("Mean Dice 0.721 to 0.821 in 2 splits with 16 cases in total.")
    assert assess({}, {}) is None


@pytest.mark.parametrize(("end", "rising"), [(0.8, True), (0.605, False)])
def test_a_score_that_still_rises_is_reported(end, rising):
    curve = {epoch: 0.6 if epoch <= 16 else end for epoch in range(1, 21)}
    found = assess({"fold 0": evaluation(EVEN)}, {"fold 0": curve}).findings
    assert bool(found) is rising
    assert all("rose by 0.200 over the last fifth" in one for one in found)
    short = {epoch: 0.1 * epoch for epoch in range(1, 6)}
    assert not assess({"fold 0": evaluation(EVEN)}, {"fold 0": short}).findings
