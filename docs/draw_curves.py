"""Plot the curves of several runs: `python docs/draw_curves.py OUT.png NAME=RUN…`."""

from __future__ import annotations

import sys
from pathlib import Path

from viewalign.weights.run_folder import RunFolder, read_log

PANELS = (
    ("loss", "Total loss", ("train", "validation")),
    ("reconstruction", "Reconstruction (Huber)", ("train", "validation")),
    ("cosine", "Teacher–student cosine", ("train", "validation")),
    ("effective_rank", "Effective rank", ("health",)),
)


def main(out: Path, runs: dict[str, Path]) -> None:
    """Draw four panels; solid lines are training, dashed lines held-out subjects."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 3.2), constrained_layout=True)
    for axis, (key, title, kinds) in zip(axes, PANELS, strict=True):
        for colour, (name, run) in zip(("#0b66b0", "#c2500a", "#2d7d46"), runs.items(), strict=False):
            rows = read_log(RunFolder(run).log)
            for kind in kinds:
                points = [(row["step"], row[key]) for row in rows if row["kind"] == kind and key in row]
                dashed = kind == "validation"
                axis.plot(
                    *zip(*points, strict=True),
                    "--o" if dashed else "-",
                    color=colour,
                    ms=3,
                    lw=1.3,
                    label=f"{name}, held out" if dashed else name,
                )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), {name: Path(run) for name, run in (pair.split("=", 1) for pair in sys.argv[2:])})
