"""Two evaluations of the same cases: which is better, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.evaluation.results import MEAN, METRICS, Evaluation, Metric
from viewalign.evaluation.statistics import Difference, paired


@dataclass(frozen=True)
class Comparison:
    """Evaluation b against evaluation a, on the cases of both.

    Attributes:
        a, b: their names.
        cases: names of the cases compared.
        differences: b minus a, by metric and class; the mean over classes is the class "mean".
        values: the mean over classes of each case, by metric: (a, b).
        left_out: cases of one of the two alone.
    """

    a: str
    b: str
    cases: tuple[str, ...]
    differences: Mapping[Metric, Mapping[str, Difference]]
    values: Mapping[Metric, tuple[NDArray[np.float64], NDArray[np.float64]]]
    left_out: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "a": self.a,
            "b": self.b,
            "cases": list(self.cases),
            "left_out": list(self.left_out),
            "difference": {m: {k: asdict(d) for k, d in by.items()} for m, by in self.differences.items()},
        }

    def table(self) -> str:
        """Return a table for a terminal."""
        rows = [("", "class", "b - a", "95 % interval", "p", "better", "worse")]
        for metric, name in zip(METRICS, ("Dice", "NSD"), strict=True):
            for label, one in self.differences[metric].items():
                ends = "-" if one.interval is None else f"{one.interval[0]:+.4f} to {one.interval[1]:+.4f}"
                chance = "-" if one.p_value is None else f"{one.p_value:.4f}"
                rows.append((name, label, f"{one.mean:+.4f}", ends, chance, str(one.better), str(one.worse)))
        widths = [max(len(row[k]) for row in rows) for k in range(7)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def compare(a: Evaluation, b: Evaluation, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare two evaluations case by case.

    Raises:
        UserError: they were judged by other rules or against other references, or share no case.
    """
    _check_alike(a, b, names)
    shared = sorted({case.name for case in a.cases} & {case.name for case in b.cases})
    everyone = {case.name for case in a.cases} | {case.name for case in b.cases}
    if not shared:
        raise UserError(f"{names[0]} and {names[1]} have no case in common.")
    left, right = _restricted(a, shared), _restricted(b, shared)
    odd = [p.name for p, q in zip(left.cases, right.cases, strict=True) if p.reference_sha256 != q.reference_sha256]
    if odd:
        raise UserError(f"{names[0]} and {names[1]} were judged against different references of {odd[0]}.")
    labels = [*a.rules.classes, MEAN]
    differences = {m: {k: paired(left.values(m, k), right.values(m, k)) for k in labels} for m in METRICS}
    values = {m: (left.values(m), right.values(m)) for m in METRICS}
    return Comparison(*names, tuple(shared), differences, values, tuple(sorted(everyone - set(shared))))


def _check_alike(a: Evaluation, b: Evaluation, names: tuple[str, str]) -> None:
    for what in ("classes", "tolerances", "ignore", "empty"):
        one, other = getattr(a.rules, what), getattr(b.rules, what)
        if one != other:
            raise UserError(f"{names[0]} and {names[1]} were judged by different {what} ({one} and {other}).")


def _restricted(evaluation: Evaluation, names: list[str]) -> Evaluation:
    by_name = {case.name: case for case in evaluation.cases}
    return Evaluation(evaluation.rules, tuple(by_name[name] for name in names))
