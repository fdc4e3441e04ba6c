"""What seeds and cases tell of arms: means with intervals, paired differences with tests, ranks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.evaluation.statistics import Difference, paired
from viewalign.reports.study import LOWER_IS_BETTER
from viewalign.studies.cells import Grid
from viewalign.utils.io import atomic_write

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


def collect(grid: Grid) -> list[dict[str, Any]]:
    """Return a row for each judge, measure and arm that has been judged."""
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    by_case: dict[tuple[str, str], dict[str, dict[int, dict[str, float]]]] = {}
    for cell in grid.cells:
        if cell.judge is not None and cell.done:
            record = cell.record
            for measure, value in record["measures"].items():
                values.setdefault((cell.judge, measure), {}).setdefault(cell.arm, {})[cell.seed] = value
                each = {case: told[measure] for case, told in record.get("cases", {}).items() if measure in told}
                by_case.setdefault((cell.judge, measure), {}).setdefault(cell.arm, {})[cell.seed] = each
    rows = []
    for (judge, measure), by_arm in values.items():
        compared, order = against(by_arm, grid.study.against), ranks(by_arm, measure in LOWER_IS_BETTER)
        on_cases = over_cases(by_case[judge, measure], grid.study.against)
        for arm, by_seed in by_arm.items():
            row: dict[str, Any] = {
                "judge": judge,
                "kind": grid.study.judges[judge].kind,
                "measure": measure,
                "arm": arm,
            }
            row |= asdict(estimate(list(by_seed.values())))
            other = compared.get(arm)
            row |= {f"difference_{k}": v for k, v in asdict(other.difference).items()} if other else {}
            row |= {"p": other.p_value, "p_holm": other.holm} if other else {}
            row |= _told(on_cases.get(arm))
            rows.append({**row, "rank": order.get(arm), "values": {str(k): v for k, v in by_seed.items()}})
    return rows


def _told(on_cases: Difference | None) -> dict[str, Any]:
    """Return a difference over cases as columns; none where a judge tells of no cases."""
    if on_cases is None or not on_cases.pairs:
        return {}
    low, high = on_cases.interval or (None, None)
    ends = {"mean": on_cases.mean, "low": low, "high": high, "pairs": on_cases.pairs, "p": on_cases.p_value}
    return {f"cases_{name}": value for name, value in ends.items()}


def write(grid: Grid) -> str:
    """Write `table.json`, `table.csv` and `table.md` into the study's folder; returns the last."""
    rows = collect(grid)
    grid.out.mkdir(parents=True, exist_ok=True)
    told = {"study": grid.study.name, "reference": grid.study.against, "rows": rows}
    _write(grid.out / "table.json", json.dumps(told, indent=1) + "\n")
    names = ["judge", "measure", "arm", "mean", "low", "high", "seeds"]
    names += ["difference_mean", "difference_low", "difference_high", "difference_seeds", "p", "p_holm"]
    names += ["cases_mean", "cases_low", "cases_high", "cases_pairs", "cases_p", "rank"]
    lines = io.StringIO()
    writer = csv.DictWriter(lines, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(grid.out / "table.csv", lines.getvalue())
    text = _markdown(rows, grid.study.against)
    _write(grid.out / "table.md", text)
    return text


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text)


def _markdown(rows: list[dict[str, Any]], reference: str) -> str:
    minus = f"minus {reference}"
    lines = [
        f"| judge | measure | arm | mean (95 %) | {minus} (95 %, seeds) | p (Holm) | {minus}, cases | rank | seeds |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["judge"], row["measure"], row["arm"], _words(row["mean"], row["low"], row["high"], "")]
        cells.append(_difference(row, "difference"))
        cells += ["" if row.get("p_holm") is None else f"{row['p_holm']:.3f}", _difference(row, "cases")]
        cells += ["" if row["rank"] is None else f"{row['rank']:.1f}", str(row["seeds"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(row: dict[str, Any], kind: str) -> str:
    middle, low, high = (row.get(f"{kind}_{part}") for part in ("mean", "low", "high"))
    return "" if middle is None else _words(middle, low, high, "+")


def _words(middle: float, low: float | None, high: float | None, sign: str) -> str:
    ends = "" if low is None or high is None else f" ({low:{sign}.4f} to {high:{sign}.4f})"
    return f"{middle:{sign}.4f}{ends}"
