"""The smallest differences that a number of seeds can find, from the spread of the seeds that have results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SEEDS = (2, 3, 4, 6, 8, 16)
"""Numbers of seeds for which a study's table states the smallest difference."""
EQUAL = 1e-12
"""Spread of differences up to which they are equal, but for rounding."""
_POWER, _LEVEL = 0.8, 0.05


@dataclass(frozen=True)
class Resolution:
    """What a study can find for a measure.

    Attributes:
        deviation: standard deviation over seeds of an arm minus the reference, pooled over the arms.
        freedom: its degrees of freedom; with few, it may be wrong by a factor of two.
        smallest: by number of seeds, the mean difference that `smallest_difference` returns.
    """

    deviation: float
    freedom: int
    smallest: dict[int, float]


def resolution(values: Mapping[str, Mapping[int, float]], reference: str) -> Resolution | None:
    """Return what can be found from a measure by arm and seed.

    None if no arm has two seeds that the reference has, or if the differences of each arm are equal, which says nothing
    about their spread.
    """
    squares, freedom = 0.0, 0
    base = values.get(reference, {})
    for arm, by_seed in values.items():
        differences = np.array([by_seed[seed] - base[seed] for seed in by_seed.keys() & base.keys()])
        differences = differences[np.isfinite(differences)]
        if arm != reference and len(differences) > 1:
            squares += float(((differences - differences.mean()) ** 2).sum())
            freedom += len(differences) - 1
    deviation = float(np.sqrt(squares / freedom)) if freedom else 0.0
    if deviation <= EQUAL:
        return None
    return Resolution(deviation, freedom, {seeds: smallest_difference(deviation, seeds) for seeds in SEEDS})


def smallest_difference(deviation: float, seeds: int) -> float:
    """Return the true difference that a paired t-test at the 5 % level finds in 80 % of all studies.

    The power follows from the noncentral t distribution (Cohen, Statistical Power Analysis, 1988).

    Args:
        deviation: standard deviation of the differences over seeds.
        seeds: at least 2.

    Example:
        ```python
        smallest_difference(0.01, 4)  # 0.0213, about twice the deviation
        ```
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = t.ppf(1 - _LEVEL / 2, seeds - 1)
    shift = brentq(lambda shift: nct.sf(critical, seeds - 1, shift) - _POWER, 0.0, 4 * critical)
    return float(shift * deviation / np.sqrt(seeds))
