"""What a study came to so far: one table as JSON, CSV and markdown."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from viewalign.report.study import LOWER_IS_BETTER
from viewalign.study.grid import Grid
from viewalign.study.statistics import against, estimate, over_cases, ranks
from viewalign.transfer.statistics import Difference
from viewalign.writing import whole


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
    with whole(path) as partial:
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
