"""The results of a study: means with intervals, paired differences with tests, ranks, and what could be found."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.evaluation.statistics import Difference, paired
from viewalign.reports.page import without_paths
from viewalign.reports.study import LOWER_IS_BETTER, label, missing_texts, seeds_text
from viewalign.studies.cells import Cell, Grid
from viewalign.studies.resolution import EQUAL, SEEDS, resolution
from viewalign.utils.io import atomic_write, write_json, write_text
from viewalign.utils.tables import cell_text

Values = Mapping[str, Mapping[int, float]]
"""A measure by arm and seed."""
CaseValues = Mapping[str, Mapping[int, Mapping[str, float]]]
"""A measure by arm, seed and test case."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval by Student's t; no interval for a single seed or pretraining."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class Paired:
    """An arm minus the reference over the seeds of both.

    Attributes:
        difference: its mean and 95 % interval.
        p_value: of the paired t-test, two-sided; None below two seeds, of a single pretraining, or if all differences
            are equal.
        holm: the same, corrected for the number of compared arms (Holm, 1979).
    """

    difference: Estimate
    p_value: float | None
    holm: float | None


def estimate(values: list[float], single: bool = False) -> Estimate:
    """Return mean and interval of finite values; NaN if there are none.

    Args:
        values: of each seed.
        single: whether they evaluate one pretraining, so that their spread is not that of pretrainings.
    """
    from scipy.stats import t as student

    kept = np.array([value for value in values if np.isfinite(value)])
    if len(kept) < 2 or single:
        return Estimate(float(kept.mean()) if len(kept) else float("nan"), None, None, len(kept))
    half = float(student.ppf(0.975, len(kept) - 1) * kept.std(ddof=1) / np.sqrt(len(kept)))
    return Estimate(float(kept.mean()), float(kept.mean()) - half, float(kept.mean()) + half, len(kept))


def against(values: Values, reference: str, single: Collection[str] = ()) -> dict[str, Paired]:
    """Compare every other arm with the reference, paired by seed; arms without a common seed are left out.

    Args:
        values: of a measure.
        reference: the arm that others are compared with.
        single: arms whose seeds evaluate one pretraining; their differences, and those from them, have no interval.
    """
    from scipy.stats import ttest_1samp

    found: dict[str, tuple[Estimate, float | None]] = {}
    for arm, by_seed in values.items():
        shared = sorted(by_seed.keys() & values.get(reference, {}).keys())
        differences = [by_seed[seed] - values[reference][seed] for seed in shared]
        differences = [value for value in differences if np.isfinite(value)]
        if arm == reference or not differences:
            continue
        alone = arm in single or reference in single
        tested = not alone and len(differences) > 1 and float(np.ptp(differences)) > EQUAL
        found[arm] = (estimate(differences, alone), float(ttest_1samp(differences, 0.0).pvalue) if tested else None)
    corrected = holm({arm: p for arm, (_, p) in found.items() if p is not None})
    return {arm: Paired(mean, p, corrected.get(arm)) for arm, (mean, p) in found.items()}


def over_cases(values: CaseValues, reference: str) -> dict[str, Difference]:
    """Compare every other arm with the reference, paired by case, by means over the seeds of both.

    This reflects variance between test cases, but not between training seeds (see `against`).
    """
    found: dict[str, Difference] = {}
    for arm, by_seed in values.items():
        seeds = sorted(by_seed.keys() & values.get(reference, {}).keys())
        if arm == reference or not seeds:
            continue
        runs = [arm_values[seed] for arm_values in (values[reference], by_seed) for seed in seeds]
        cases = sorted(set.intersection(*(set(run) for run in runs)))
        differences = [[by_seed[seed][c] - values[reference][seed][c] for c in cases] for seed in seeds]
        means = np.array(differences).mean(axis=0)  # `paired` ignores cases that are not finite for some seed
        found[arm] = paired(np.zeros_like(means), means)
    return found


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Correct p-values for multiple comparisons (Holm, 1979)."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected: dict[str, float] = {}
    highest = 0.0
    for k, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - k) * p_values[name]))
        corrected[name] = highest
    return corrected


def ranks(values: Values, lower_is_better: bool = False) -> dict[str, float]:
    """Return each arm's mean rank (1 is best, ties are averaged) over the seeds that all arms have; empty without any.

    Seeds for which the measure of an arm is not finite are left out.
    """
    from scipy.stats import rankdata

    finite = [{seed for seed, value in by_seed.items() if np.isfinite(value)} for by_seed in values.values()]
    shared = sorted(set.intersection(*finite)) if finite else []
    if not shared:
        return {}
    table = np.array([[by_seed[seed] for seed in shared] for by_seed in values.values()])
    means = rankdata(table if lower_is_better else -table, axis=0).mean(axis=1)
    return dict(zip(values, means.tolist(), strict=True))


def collect(grid: Grid) -> list[dict[str, Any]]:
    """Return a row for each arm in every evaluation and measure that has a result; an arm without one has no values."""
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    by_case: dict[tuple[str, str], dict[str, dict[int, dict[str, float]]]] = {}
    runs: dict[tuple[str, str], set[Path]] = {}
    for cell in grid.cells:
        if cell.evaluation is None or cell.needs is None or not cell.done:
            continue
        record = cell.record
        runs.setdefault((cell.evaluation, cell.arm), set()).add(cell.needs.folder)
        for measure, value in record["measures"].items():
            key = (cell.evaluation, measure)
            cases = {c: scores[measure] for c, scores in record.get("cases", {}).items() if measure in scores}
            values.setdefault(key, {}).setdefault(cell.arm, {})[cell.seed] = value
            by_case.setdefault(key, {}).setdefault(cell.arm, {})[cell.seed] = cases
    rows = []
    for (evaluation, measure), by_arm in values.items():
        made = {arm: len(runs.get((evaluation, arm), ())) for arm in grid.study.arms}
        single = {arm for arm, count in made.items() if count == 1}
        compared = against(by_arm, grid.study.against, single)
        on_cases = over_cases(by_case[evaluation, measure], grid.study.against)
        order = ranks(by_arm, measure in LOWER_IS_BETTER)
        kind = grid.study.evaluations[evaluation].kind
        for arm, settings in grid.study.arms.items():
            by_seed = by_arm.get(arm, {})
            row: dict[str, Any] = {"evaluation": evaluation, "kind": kind, "measure": measure, "arm": arm}
            row |= {"title": settings.title, **asdict(estimate(list(by_seed.values()), arm in single))}
            row |= {"runs": made[arm], **_difference_columns(compared.get(arm)), **_case_columns(on_cases.get(arm))}
            rows.append({**row, "rank": order.get(arm), "values": {str(k): v for k, v in by_seed.items()}})
    return rows


def missing(grid: Grid) -> list[dict[str, Any]]:
    """Return the evaluations without a result: `evaluation`, `arm`, `seed`, `cell` (its name) and `error`.

    The error is that of the cell or of a pretraining that it needs, without paths; None if none failed.
    """
    cells = [cell for cell in grid.cells if cell.evaluation is not None and not cell.done]
    return [
        {"evaluation": c.evaluation, "arm": c.arm, "seed": c.seed, "cell": c.name, "error": _error(c)} for c in cells
    ]


def _error(cell: Cell | None) -> str | None:
    if cell is None:
        return None
    error = cell.record.get("error")
    return _error(cell.needs) if error is None else without_paths(str(error))


def _difference_columns(paired_seeds: Paired | None) -> dict[str, Any]:
    if paired_seeds is None:
        return {}
    columns = {f"difference_{name}": value for name, value in asdict(paired_seeds.difference).items()}
    return {**columns, "p": paired_seeds.p_value, "p_holm": paired_seeds.holm}


def _case_columns(on_cases: Difference | None) -> dict[str, Any]:
    if on_cases is None or not on_cases.pairs:
        return {}
    low, high = on_cases.interval or (None, None)
    ends = {"mean": on_cases.mean, "low": low, "high": high, "pairs": on_cases.pairs, "p": on_cases.p_value}
    return {f"cases_{name}": value for name, value in ends.items()}


_COLUMNS = (
    *("evaluation", "measure", "arm", "mean", "low", "high", "seeds", "runs"),
    *("difference_mean", "difference_low", "difference_high", "difference_seeds", "p", "p_holm"),
    *("cases_mean", "cases_low", "cases_high", "cases_pairs", "cases_p", "rank"),
)


def write(grid: Grid, summary: Mapping[str, Any] | None = None) -> str:
    """Write `table.json`, `table.csv` and `table.md` into the study's folder; return the text of the last.

    Args:
        grid: the study.
        summary: sentences for the top of the page; see `gain_results.summary`.
    """
    rows = collect(grid)
    grid.out.mkdir(parents=True, exist_ok=True)
    found = resolutions(rows, grid.study.against)
    tables: dict[str, Any] = {"study": grid.study.name, "reference": grid.study.against, "rows": rows}
    tables |= {"resolution": found, "missing": missing(grid), "summary": summary}
    write_json(grid.out / "table.json", tables)
    with atomic_write(grid.out / "table.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: cell_text(value) if isinstance(value, str) else value for key, value in row.items()})
    text = _markdown(rows, grid.study.against) + _resolution_markdown(found)
    text += "".join(f"\n{sentence}\n" for sentence in missing_texts(tables))
    write_text(grid.out / "table.md", text)
    return text


def _markdown(rows: list[dict[str, Any]], reference: str) -> str:
    minus = f"minus {reference}"
    names = ["evaluation", "measure", "arm", "mean (95 %)", f"{minus} (95 %, seeds)", "p (Holm)"]
    names += [f"{minus}, cases", "rank", "seeds"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        arm = " ".join(label(row).split()).replace("|", r"\|")
        cells = [row["evaluation"], row["measure"], arm, _interval(row["mean"], row["low"], row["high"], "")]
        cells += [_difference(row, "difference"), "" if row.get("p_holm") is None else f"{row['p_holm']:.3f}"]
        cells += [_difference(row, "cases"), "" if row["rank"] is None else f"{row['rank']:.1f}", seeds_text(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def resolutions(rows: list[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Return, for each evaluation and measure with two seeds, the smallest differences that can be found."""
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        if row.get("runs") == 1:  # its seeds do not have the spread of pretrainings
            continue
        by_seed = {int(seed): value for seed, value in row["values"].items()}
        groups.setdefault((row["evaluation"], row["measure"]), {})[row["arm"]] = by_seed
    made = {key: resolution(values, reference) for key, values in groups.items()}
    return [{"evaluation": key[0], "measure": key[1], **asdict(one)} for key, one in made.items() if one is not None]


def _resolution_markdown(found: list[dict[str, Any]]) -> str:
    """Return a table for the first measure of each evaluation."""
    first: dict[str, dict[str, Any]] = {}
    for one in found:
        first.setdefault(one["evaluation"], one)
    if not first:
        return ""
    lines = ["", "Smallest differences that a paired t-test finds in 80 % of all studies, by number of seeds:", ""]
    lines += [f"| evaluation | measure | {' | '.join(map(str, SEEDS))} |", "|---" * (len(SEEDS) + 2) + "|"]
    for one in first.values():
        cells = [f"{one['smallest'][seeds]:.4f}" for seeds in SEEDS]
        lines.append(f"| {one['evaluation']} | {one['measure']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(row: dict[str, Any], kind: str) -> str:
    mean, low, high = (row.get(f"{kind}_{part}") for part in ("mean", "low", "high"))
    return "" if mean is None else _interval(mean, low, high, "+")


def _interval(mean: float, low: float | None, high: float | None, sign: str) -> str:
    if not np.isfinite(mean):
        return "–"
    ends = "" if low is None or high is None else f" ({low:{sign}.4f} to {high:{sign}.4f})"
    return f"{mean:{sign}.4f}{ends}"
