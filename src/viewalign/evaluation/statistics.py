"""Bootstrap intervals of a mean over cases, and paired comparisons on the same cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from viewalign.utils.rng import make_rng

Interval = tuple[float, float]

_MIN_CASES_FOR_INTERVAL = 5
_RESAMPLINGS = 2000
_SIGN_FLIPS = 9999
_VALUES_AT_ONCE = 1 << 18
"""Of all resampled cases; limits memory."""


def bootstrap_interval(values: NDArray[np.float64], seed: int) -> Interval | None:
    """Return the 95 % percentile interval of the mean over cases, or None below five cases."""
    values = values[np.isfinite(values)]
    if len(values) < _MIN_CASES_FOR_INTERVAL:
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
        p_value: two-sided, of a sign-flip permutation test (exact for few cases); None below two.
        pairs: number of cases.
        better, worse: number of cases in which b is above or below a.
    """

    mean: float
    interval: Interval | None
    p_value: float | None
    pairs: int
    better: int
    worse: int


def paired(a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0) -> Difference:
    """Compare two methods on the same cases, ignoring pairs with a value that is not finite."""
    from scipy.stats import permutation_test

    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return Difference(float("nan"), None, None, 0, 0, 0)
    p_value = None
    if len(differences) > 1:
        rng = make_rng(seed, "sign flips")
        options = {"permutation_type": "samples", "n_resamples": _SIGN_FLIPS, "vectorized": True, "rng": rng}
        options["batch"] = max(1, _VALUES_AT_ONCE // len(differences))  # which does not change the result
        p_value = float(permutation_test((differences,), np.mean, **options).pvalue)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    mean = float(differences.mean())
    return Difference(mean, bootstrap_interval(differences, seed), p_value, len(differences), better, worse)


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of equal length as a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
