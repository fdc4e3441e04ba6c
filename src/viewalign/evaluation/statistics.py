"""How sure a mean over cases is, and whether two methods differ on the same cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from viewalign.utils.rng import make_rng

_FEWEST_FOR_INTERVAL = 5
_RESAMPLINGS = 2000
_SIGN_FLIPS = 9999


def bootstrap_interval(values: NDArray[np.float64], seed: int) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean over cases, or None below five cases."""
    values = values[np.isfinite(values)]
    if len(values) < _FEWEST_FOR_INTERVAL:
        return None
    rng = make_rng(seed, "bootstrap")
    means = values[rng.integers(0, len(values), size=(_RESAMPLINGS, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """A paired comparison, b minus a.

    Attributes:
        mean: of the differences.
        interval: 95 % bootstrap interval of the mean over cases; None below five.
        p_value: two-sided, by sign flips (exact for few cases); None below two.
        pairs: how many cases both have.
        better, worse: on how many b is above, below a.
    """

    mean: float
    interval: tuple[float, float] | None
    p_value: float | None
    pairs: int
    better: int
    worse: int


def paired(a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0) -> Difference:
    """Compare two methods on the same cases; pairs in which either is not finite are left out.

    The p-value is of the permutation test in which each case's difference may have either sign (`scipy.stats`).
    """
    from scipy.stats import permutation_test

    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return Difference(float("nan"), None, None, 0, 0, 0)
    p_value = None
    if len(differences) > 1:
        test = permutation_test(
            (differences,),
            np.mean,
            permutation_type="samples",
            n_resamples=_SIGN_FLIPS,
            vectorized=True,
            rng=make_rng(seed, "sign flips"),
        )
        p_value = float(test.pvalue)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    mean = float(differences.mean())
    return Difference(mean, bootstrap_interval(differences, seed), p_value, len(differences), better, worse)
