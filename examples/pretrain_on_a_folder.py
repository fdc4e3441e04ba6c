"""From a folder of images to an encoder, and a look at whether the run was healthy.

python examples/pretrain_on_a_folder.py FOLDER OUT [--steps 500]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import viewalign
from viewalign.reports.run import write_report


def main(folder: Path, out: Path, steps: int, side: int) -> None:
    """Prepare, pretrain, report, export."""
    report = viewalign.prepare(folder, out / "store")
    print(f"{report.prepared} images prepared, {len(report.excluded)} excluded")
    views = {"patch_size": side}
    run = viewalign.pretrain("cva-resenc-xs", out / "store", out / "run", resume=True, steps=steps, views=views)
    print(f"step {run.step} of {run.steps}; what the health panel says stands in {write_report(run.folder.root)}")
    print(f"encoder for others: {viewalign.export_run(run.folder.root)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--side", type=int, default=32, help="of a view, in voxels")
    given = parser.parse_args()
    main(given.folder, given.out, given.steps, given.side)
