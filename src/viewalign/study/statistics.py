"""What seeds and cases tell of arms: means with intervals, paired differences with tests, ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from viewalign.transfer.statistics import Difference, paired

Values = Mapping[str, Mapping[int, float]]
"""A measure by arm and seed."""
CaseValues = Mapping[str, Mapping[int, Mapping[str, float]]]
"""A measure by arm, seed and test case."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval by Student's t; no interval from a single seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Paired:
    """An arm minus the reference over the seeds of both.

    Attributes:
        difference: its mean and 95 % interval.
        p_value: of the paired t-test, two-sided; None below two seeds, or where no difference varies.
        holm: the same, corrected for all arms compared by this measure (Holm, 1979).
    """

    difference: Estimate
    p_value: float | None
    holm: float | None


def estimate(values: list[float]) -> Estimate:
    """Return mean and interval of values that are finite; the mean of none is NaN."""
    from scipy.stats import t as student

    kept = np.array([value for value in values if np.isfinite(value)])
    if len(kept) < 2:
        return Estimate(float(kept.mean()) if len(kept) else float("nan"), None, None, len(kept))
    half = float(student.ppf(0.975, len(kept) - 1) * kept.std(ddof=1) / np.sqrt(len(kept)))
    return Estimate(float(kept.mean()), float(kept.mean()) - half, float(kept.mean()) + half, len(kept))


def against(values: Values, reference: str) -> dict[str, Paired]:
    """Compare every other arm with the reference, paired by seed."""
    from scipy.stats import ttest_1samp

    found: dict[str, tuple[Estimate, float | None]] = {}
    for arm, by_seed in values.items():
        if arm == reference:
            continue
        shared = sorted(by_seed.keys() & values.get(reference, {}).keys())
        apart = [by_seed[seed] - values[reference][seed] for seed in shared]
        apart = [one for one in apart if np.isfinite(one)]
        varies = len(apart) > 1 and float(np.ptp(apart)) > 0
        found[arm] = (estimate(apart), float(ttest_1samp(apart, 0.0).pvalue) if varies else None)
    corrected = holm({arm: p for arm, (_, p) in found.items() if p is not None})
    return {arm: Paired(one, p, corrected.get(arm)) for arm, (one, p) in found.items()}


def over_cases(values: CaseValues, reference: str) -> dict[str, Difference]:
    """Compare every other arm with the reference, paired by case: for each case the mean over the seeds of both counts.

    It knows of the chance in test cases and not of that in training, which is what `against` knows of.
    """
    found: dict[str, Difference] = {}
    for arm, by_seed in values.items():
        seeds = sorted(by_seed.keys() & values.get(reference, {}).keys())
        if arm == reference or not seeds:
            continue
        runs = [one[seed] for one in (values[reference], by_seed) for seed in seeds]
        cases = sorted(set.intersection(*(set(run) for run in runs)))
        apart = np.array([[by_seed[seed][c] - values[reference][seed][c] for c in cases] for seed in seeds])
        means = apart.mean(axis=0)  # a case that is not finite with any seed is left out
        found[arm] = paired(np.zeros_like(means), means)
    return found


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for their number, step by step from the smallest (Holm, 1979)."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected: dict[str, float] = {}
    highest = 0.0
    for k, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - k) * p_values[name]))
        corrected[name] = highest
    return corrected


def ranks(values: Values, lower_is_better: bool = False) -> dict[str, float]:
    """Return each arm's mean rank (1 is best, ties share) over the seeds that all arms have; empty without any."""
    from scipy.stats import rankdata

    shared = sorted(set.intersection(*(set(by_seed) for by_seed in values.values()))) if values else []
    if not shared:
        return {}
    table = np.array([[by_seed[seed] for seed in shared] for by_seed in values.values()])
    means = rankdata(table if lower_is_better else -table, axis=0).mean(axis=1)
    return dict(zip(values, means.tolist(), strict=True))
