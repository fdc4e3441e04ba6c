"""Draw the differences that docs/results/findings.json names: `python docs/draw_results.py OUT.png`.

A row names a study's table in docs/results (or several, with other seeds), an evaluation and two arms, and is computed
from the values of their seeds; `minus_table` and `minus_evaluation` are those of the second arm, if they differ.
Rows of studies whose tables were not kept have their difference and interval.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from viewalign.studies.table import against

RESULTS = Path(__file__).parent / "results"
COLOURS = {"pretrainings": "#0b66b0", "draws": "#1a8a5a"}
LABELS = {
    "pretrainings": "over pretrainings (and draws of labelled cases)",
    "draws": "over draws of labelled cases; one pretraining",
}
EDGES = (-0.16, 0.2)
"""Ends of the axis."""


def values(tables: str | list[str], evaluation: str, arm: str, measure: str) -> dict[int, float]:
    """Return an arm's values by seed in docs/results/TABLE.json."""
    found: dict[int, float] = {}
    for table in [tables] if isinstance(tables, str) else tables:
        rows = json.loads((RESULTS / f"{table}.json").read_text())["rows"]
        (row,) = (one for one in rows if (one["evaluation"], one["arm"], one["measure"]) == (evaluation, arm, measure))
        found |= {int(seed): value for seed, value in row["values"].items() if value is not None}
    return found


def difference(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with `difference`, `low` and `high` (95 %, Student's t over common seeds)."""
    if "difference" in row:
        return row
    table, evaluation, measure = row["table"], row["evaluation"], row.get("measure", "dice")
    arm = values(table, evaluation, row["arm"], measure)
    other = values(row.get("minus_table", table), row.get("minus_evaluation", evaluation), row["minus"], measure)
    found = against({"arm": arm, "minus": other}, "minus")["arm"].difference
    return {**row, "difference": found.mean, "low": found.low, "high": found.high}


def main(out: Path) -> None:
    """Write one panel per question, all with the same axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    groups = json.loads((RESULTS / "findings.json").read_text())
    heights = [len(group["rows"]) for group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(10, 0.3 * sum(heights) + 3), sharex=True, height_ratios=heights, layout="constrained"
    )
    for axis, group in zip(axes, groups, strict=True):
        axis.axvline(0, color="#777", lw=1)
        for place, row in enumerate(map(difference, group["rows"])):
            colour = COLOURS[row["over"]]
            axis.plot([row["low"], row["high"]], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
            axis.plot(row["difference"], place, "o", color=colour, ms=6)
        axis.set_yticks(range(len(group["rows"])), [row["label"] for row in group["rows"]], fontsize=9)
        axis.set_ylim(len(group["rows"]) - 0.5, -0.5)
        axis.set_xlim(EDGES)
        axis.set_title(group["measure"], fontsize=9, loc="left")
        axis.annotate(group["question"], (0, 1), (0, 20), "axes fraction", "offset points", fontsize=11, weight="bold")
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False)
    axes[-1].set_xlabel("difference with 95 % interval; right of 0: better")
    handles = [plt.Line2D([], [], color=colour, marker="o", lw=2.2) for colour in COLOURS.values()]
    figure.legend(handles, list(LABELS.values()), fontsize=9, loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
