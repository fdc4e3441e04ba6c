"""Fine-tune an encoder for a task with one answer a case, beside the same network untrained, and predict.

python examples/classify.py TASK RUN NETWORK OUT [--epochs 50]

TASK is a folder of task.yaml and manifest.csv (docs/tasks.md); NETWORK is that of the run, such as resenc-xs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import viewalign


def main(task: Path, run: str, network: str, out: Path, epochs: int, folds: int) -> None:
    """Judge both on the same folds, then predict with the pretrained one."""
    for name, encoder in (("pretrained", run), ("untrained", f"untrained:{network}")):
        tuned = viewalign.finetune("classification", task, encoder, out / name, epochs=epochs, folds=folds)
        print(name, {figure: round(value, 3) for figure, value in tuned.score.values.items()})
    said = viewalign.predict(out / "pretrained", task, out / "predictions.csv")
    print(f"{len(said.values)} cases in {out / 'predictions.csv'}, columns {', '.join(said.columns)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("run")
    parser.add_argument("network")
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--folds", type=int, default=5)
    given = parser.parse_args()
    main(given.task, given.run, given.network, given.out, given.epochs, given.folds)
