"""The results of `viewalign gain`: differences with one interval over seeds and cases, and the sentences about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.evaluation.task_metrics import LOWER_IS_BETTER, evaluate, evaluate_samples, resample_counts
from viewalign.reports.task import WORDS
from viewalign.studies.cells import Cell, Grid
from viewalign.studies.gain import FEWEST_TEST, PRETRAINED, PUBLIC, SCRATCH
from viewalign.studies.gain_rates import RateChoice
from viewalign.studies.settings import FeatureProbeEvaluation, FinetuneEvaluation, SegmentationEvaluation
from viewalign.tasks.manifest import read_manifest
from viewalign.tasks.spec import TaskSpec, read_spec
from viewalign.utils.text import counted

_DRAWS = 200
_TITLES = {
    (PRETRAINED, SCRATCH): "Pretrained against trained from scratch",
    (PUBLIC, SCRATCH): "Public encoder against trained from scratch",
    (PRETRAINED, PUBLIC): "Pretrained against the public encoder",
}
_NOT_LEARNT = 0.2
"""Mean Dice of both networks below which a comparison says nothing about longer trainings."""
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95 % interval over seeds and test cases.

    Attributes:
        mean: of the differences.
        low, high: ends of the interval; None below two seeds or five test cases.
        seeds, cases: their numbers.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    cases: int


@dataclass(frozen=True)
class Comparison:
    """An arm minus another in one evaluation.

    Attributes:
        evaluation: its name.
        frozen: whether frozen features were evaluated.
        labelled: the labelled training cases, in words.
        measure: name of the measure.
        arm, reference: the compared arms.
        difference: its mean and interval.
        values: means of the reference and of the arm.
    """

    evaluation: str
    frozen: bool
    labelled: str
    measure: str
    arm: str
    reference: str
    difference: Interval
    values: tuple[float, float] = (math.nan, math.nan)

    @property
    def better(self) -> bool | None:
        """Whether the arm is better, or worse; None if no difference could be shown."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return None
        return (low > 0) != (self.measure in LOWER_IS_BETTER)

    @property
    def verdict(self) -> str:
        """The result in a word or two."""
        one = self.difference
        if not math.isfinite(one.mean):
            return "no conclusion: the measure is not defined for these test cases"
        if one.low is None:
            return f"no conclusion: only {'one seed' if one.seeds < 2 else counted(one.cases, 'test case')}"
        return {None: "no difference shown", True: "better", False: "worse"}[self.better]

    def value(self) -> str:
        """Return the difference in words, such as `+0.021 Dice (95 % interval +0.014 to +0.028)`."""
        one, name = self.difference, WORDS.get(self.measure, self.measure.capitalize())
        ends = "" if one.low is None or one.high is None else f" (95 % interval {one.low:+.3f} to {one.high:+.3f})"
        return f"{one.mean:+.3f} {name}{ends}".replace("-", _MINUS)

    def text(self) -> str:
        """Return the result as a sentence, of a pretraining that is compared with training from scratch."""
        if self.difference.low is None:
            return f"No conclusion {self.labelled} ({self.verdict.removeprefix('no conclusion: ')}): {self.value()}."
        start = {
            None: f"No gain could be shown {self.labelled}, and none can be excluded",
            True: f"Pretraining helped {self.labelled}",
            False: f"Pretraining made it worse {self.labelled}",
        }[self.better]
        return f"{start}: {self.value()}."


def crossed_interval(differences: NDArray[np.float64]) -> Interval:
    """Return the 95 % interval of the mean of differences (seeds, cases), of which both are samples.

    See `_interval`; in simulations of 2 to 5 seeds and 15 to 50 cases it covered the mean in 96 to 99 %.
    """
    seeds, cases = differences.shape
    mean = float(differences.mean())
    if seeds < 2 or cases < FEWEST_TEST:
        return Interval(mean, None, None, seeds, cases)
    by_seed, by_case = differences.mean(axis=1), differences.mean(axis=0)
    return _interval(mean, float(by_seed.var(ddof=1)) / seeds, float(by_case.var(ddof=1)) / cases, seeds, cases)


def _interval(
    mean: float, over_seeds: float, over_cases: float, seeds: int, cases: int, largest: float = 1.0
) -> Interval:
    """Combine the variances of a mean over seeds and over cases.

    The squares of both half-widths by Student's t add up (MOVER; Zou and Donner, 2008). Variance that is in both, of
    single results, is counted twice, so that the interval is rather too wide. It ends at the largest possible
    difference, which Student's t of two seeds can exceed.
    """
    from scipy.stats import t as student

    widths = [student.ppf(0.975, n - 1) * v**0.5 for n, v in ((seeds, over_seeds), (cases, over_cases))]
    half = float(np.hypot(*widths))
    return Interval(mean, max(mean - half, -largest), min(mean + half, largest), seeds, cases)


def task_interval(
    spec: TaskSpec, truth: NDArray[Any], subjects: Sequence[str], pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]
) -> Interval:
    """Return the interval of the difference of a task's primary metric.

    Args:
        spec: the task.
        truth: (N,) or (N, K) targets of the test cases.
        subjects: of the test cases.
        pairs: predictions of the reference and the arm for each seed.

    The variance over cases is that of bootstrap samples of subjects; see `_interval`.
    """
    count = len(set(subjects))

    def differences(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        scores = [[evaluate_samples(spec.kind, truth, one, counts)[spec.figure] for one in pair] for pair in pairs]
        return np.array([arm - reference for reference, arm in scores])

    by_seed = differences(np.ones((1, len(truth)), dtype=np.int64))[:, 0]
    if len(pairs) < 2 or count < FEWEST_TEST:
        return Interval(float(by_seed.mean()), None, None, len(pairs), count)
    drawn = differences(resample_counts(subjects, _DRAWS, 0)).mean(axis=0)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) <= _DRAWS / 2 or not np.isfinite(by_seed).all():
        return Interval(float(by_seed.mean()), None, None, len(pairs), count)
    over_seeds, over_cases = float(by_seed.var(ddof=1)) / len(pairs), float(drawn.var(ddof=1))
    largest = math.inf if spec.kind == "regression" or spec.figure == "brier" else 1.0
    return _interval(float(by_seed.mean()), over_seeds, over_cases, len(pairs), count, largest)


def compare_arms(grid: Grid) -> list[Comparison]:
    """Return all comparisons for which both arms are complete."""
    done: dict[tuple[str, str], dict[int, Cell]] = {}
    for cell in grid.cells:
        if cell.evaluation is not None and cell.done:
            done.setdefault((cell.evaluation, cell.arm), {})[cell.seed] = cell
    found = []
    for evaluation in grid.study.evaluations:
        for reference, arm in combinations((SCRATCH, PUBLIC, PRETRAINED), 2):
            cells = [done.get((evaluation, name), {}) for name in (reference, arm)]
            seeds = sorted(cells[0].keys() & cells[1].keys())
            if seeds:
                records = [(cells[0][seed].record, cells[1][seed].record) for seed in seeds]
                found.append(_compare(grid, evaluation, arm, reference, records))
    return found


def _compare(
    grid: Grid, evaluation: str, arm: str, reference: str, records: Sequence[tuple[Mapping[str, Any], ...]]
) -> Comparison:
    settings = grid.study.evaluations[evaluation]
    if isinstance(settings, FinetuneEvaluation | FeatureProbeEvaluation):
        task = Path(settings.task)
        spec = read_spec(task)
        cases = {case.case: case for case in read_manifest(task, spec)}
        names = sorted(set.intersection(*(set(record["predicted"]) for pair in records for record in pair)))
        pairs = [tuple(np.array([record["predicted"][name] for name in names]) for record in pair) for pair in records]
        truth = np.array([cases[name].target for name in names])
        interval = task_interval(spec, truth, [cases[name].subject for name in names], pairs)  # type: ignore[arg-type]
        scores = [[evaluate(spec.kind, truth, one)[spec.figure] for one in pair] for pair in pairs]
        values = np.array(scores).mean(axis=0)
        measure, count = spec.figure, sum(case.split == "train" for case in cases.values())
        word = "case" if spec.kind in ("regression", "multilabel") else "case of each class"
    else:
        names = sorted(set.intersection(*(set(record["cases"]) for pair in records for record in pair)))
        dice = [[[one["cases"][name]["dice"] for name in names] for one in pair] for pair in records]
        table = np.array(dice, dtype=np.float64)  # seeds × (reference, arm) × cases
        kept = np.isfinite(table).all(axis=(0, 1))
        table = _by_patient(table[:, :, kept], np.array(names)[kept].tolist(), grid)
        interval = crossed_interval(table[:, 1] - table[:, 0])
        values = table.mean(axis=(0, 2))
        measure, (count, word) = "dice", _labelled(grid)
    shots = getattr(settings, "shots", None)
    labelled = (
        f"with all {count}"
        if shots in (None, count)
        else f"with {counted(shots, word, word.replace('case', 'cases', 1).replace('patient', 'patients'))}"
    )
    frozen, means = evaluation.startswith("frozen"), (float(values[0]), float(values[1]))
    return Comparison(evaluation, frozen, labelled, measure, arm, reference, interval, means)


def _by_patient(table: NDArray[Any], names: Sequence[str], grid: Grid) -> NDArray[Any]:
    """Return values (seeds, arms, cases) averaged over the cases of each patient."""
    if grid.labelled is None or not names:
        return table
    patients = np.array([grid.labelled.patients[name] for name in names])
    return np.stack([table[:, :, patients == one].mean(axis=2) for one in dict.fromkeys(patients)], axis=2)


def _labelled(grid: Grid) -> tuple[int, str]:
    """Return the number of training cases, or of their patients, and the word for one."""
    assert grid.labelled is not None
    count = len({grid.labelled.patients[case.name] for case in grid.labelled.learn})
    return count, "labelled case" if grid.labelled.patient is None else "labelled patient"


def summary(comparisons: Sequence[Comparison], seconds: float, complete: bool) -> dict[str, Any]:
    """Return the sentences about a gain, for its page and the console.

    Args:
        comparisons: from `compare_arms`.
        seconds: of all cells.
        complete: whether all cells are finished.

    Returns:
        `headline`, sentences about fine-tuning after pretraining against training from scratch, and `level`: good,
        watch, bad or none; `cost` in words; and `comparisons` as plain values with their `title` and `verdict`.
    """
    cost = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else counted(max(1, round(seconds / 60)), "minute")
    first = [one for one in comparisons if (one.frozen, one.arm, one.reference) == (False, PRETRAINED, SCRATCH)]
    headline = f"No fine-tuning is complete yet; {cost} so far."
    if first:
        headline = f"{' '.join(one.text() for one in first)} It took {cost}."
    if lowest := [one for one in first if one.measure == "dice" and max(one.values) < _NOT_LEARNT]:
        dice = max(max(one.values) for one in lowest)
        headline += f" Dice of both is at most {dice:.2f} {lowest[0].labelled}: too little was learnt to compare them;"
        headline += " set more finetune.epochs."
    if not complete and first:
        headline += " Not all parts are complete."
    plain = [
        {**asdict(one), "better": one.better, "title": _TITLES[one.arm, one.reference], "verdict": one.verdict}
        for one in comparisons
    ]
    return {"headline": headline, "level": _level(first), "cost": cost, "comparisons": plain}


def _level(comparisons: Sequence[Comparison]) -> str:
    """Return good if pretraining helped somewhere and harmed nowhere, bad if only the opposite, otherwise watch."""
    found = {one.better for one in comparisons}
    if not found:
        return "none"
    return "watch" if found == {None} or {True, False} <= found else "good" if True in found else "bad"


def described(grid: Grid, rates: Sequence[RateChoice] | None = None) -> dict[str, str]:
    """Return what was compared on what, at which learning rates, in words, for the page.

    Args:
        grid: of the comparison.
        rates: the chosen learning rates, empty as long as none is; None for one rate.
    """
    study = grid.study
    recipe = grid.recipes[PRETRAINED, study.seeds[0]]
    pretrained = study.arms[PRETRAINED]
    start = f"{recipe.method}, {recipe.network.name}, {counted(recipe.steps, 'step')} of batch {recipe.batch}"
    about = {"Pretraining": f"encoder {Path(pretrained.encoder).name}" if pretrained.encoder else start}
    if grid.labelled is not None:
        data = study.data.labelled
        name = Path(data.dataset).name if data is not None and data.dataset else "segmentation"
        cases = len(grid.labelled.learn), len(grid.labelled.test)
    else:
        task = next(e.task for e in study.evaluations.values() if isinstance(e, FinetuneEvaluation))
        name = read_spec(task).name
        found = read_manifest(Path(task), read_spec(task))
        cases = sum(case.split == "train" for case in found), sum(case.split == "test" for case in found)
    about["Labelled data"] = f"{name}: {counted(cases[0], 'training case')}, {counted(cases[1], 'test case')}"
    about["Seeds"] = counted(len(study.seeds), "fine-tuning") + " of each encoder and number of labels"
    first = next(e for e in study.evaluations.values() if isinstance(e, SegmentationEvaluation | FinetuneEvaluation))
    rate = first.settings.get("lr")
    if rates is not None:
        about["Learning rate"] = ", ".join(f"{one.arm} {one.rate:g}" for one in rates) or "not chosen yet"
    elif rate is None:
        about["Learning rate"] = "the published ones"
    else:
        about["Learning rate"] = f"{float(rate):g} for all encoders, not tuned"
    return about
