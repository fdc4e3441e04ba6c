"""Draw the differences of docs/results/findings.json with their intervals: `python docs/draw_results.py OUT.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

FINDINGS = Path(__file__).parent / "results" / "findings.json"
COLOURS = {"seeds": "#0b66b0", "cases": "#c2500a"}


def main(out: Path) -> None:
    """Write one panel per question, all with the same axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    groups = json.loads(FINDINGS.read_text())
    heights = [len(group["rows"]) for group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(10, 0.3 * sum(heights) + 3), sharex=True, height_ratios=heights, layout="constrained"
    )
    for axis, group in zip(axes, groups, strict=True):
        axis.axvline(0, color="#777", lw=1)
        for place, row in enumerate(group["rows"]):
            colour = COLOURS[row["over"]]
            axis.plot([row["low"], row["high"]], [place, place], color=colour, lw=2.2, solid_capstyle="round")
            axis.plot(row["difference"], place, "o", color=colour, ms=6)
        axis.set_yticks(range(len(group["rows"])), [row["label"] for row in group["rows"]], fontsize=9)
        axis.set_ylim(len(group["rows"]) - 0.5, -0.5)
        axis.set_title(group["measure"], fontsize=9, loc="left")
        axis.annotate(group["question"], (0, 1), (0, 20), "axes fraction", "offset points", fontsize=11, weight="bold")
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False)
    axes[-1].set_xlabel("difference with 95 % interval; right of 0: better")
    handles = [plt.Line2D([], [], color=colour, marker="o", lw=2.2) for colour in COLOURS.values()]
    figure.legend(
        handles, ["over seeds", "over test cases"], fontsize=9, loc="outside upper right", ncols=2, frameon=False
    )
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
