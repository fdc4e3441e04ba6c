"""The index of a made-up store of 100,000 images: how long it takes to open, and what workers cost.

`python benchmarks/catalogue.py [--images 100000] [--workers 0 2 8]`

Opens the store in a fresh process, forks workers as a data loader does, lets each look at every image once, and adds up
the memory that all processes hold because of the index (proportional set size, so that shared pages count once), above
what the same processes hold without it. The last line is one JSON object; `ratio` is the larger of seconds ÷ 2 and
bytes ÷ 200 MB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from viewalign.data.columns import Row, write_index
from viewalign.data.layout import STORE_FORMAT, STORE_VERSION, write_json

SECONDS, BYTES = 2.0, 200e6


def make(folder: Path, images: int) -> None:
    """Write the index of a store whose arrays are not there."""
    rows = [
        Row(
            id=f"OpenMind__ds{n % 800:06d}__sub-{n // 3:06d}__ses-{n % 3:02d}__sub-{n // 3:06d}_ses-{n % 3:02d}_T1w",
            path=f"volumes/ds{n % 800:06d}/sub-{n // 3:06d}/ses-{n % 3:02d}/sub-{n // 3:06d}_ses-{n % 3:02d}_T1w",
            subject=f"OpenMind__ds{n % 800:06d}__sub-{n // 3:06d}",
            dataset=f"ds{n % 800:06d}",
            modality=("T1w", "T2w", "FLAIR")[n % 3],
            shape=(180 + n % 40, 200 + n % 30, 160 + n % 50),
            spacing=(1.0, round(0.9 + n % 100 / 1000, 6), 1.0),
            foreground_threshold=-0.123456789 + n / 1e6,
            anonymisation=n % 2 == 0,
            anatomy=n % 2 == 0,
            quality=float(n % 5),
        )
        for n in range(images)
    ]
    write_json(folder / "store.json", {"format": STORE_FORMAT, "version": STORE_VERSION, "recipe": None})
    write_index(folder, rows)


def proportional_bytes() -> int:
    """Return this process's memory, pages shared with n processes counted as 1/n."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def look(store: object, gate: object, out: object) -> None:
    """Be a worker: read every column of every image, wait for the others, and tell the memory held."""
    from viewalign.data.store import Store

    if isinstance(store, Store):
        for k in range(len(store)):
            assert store.ids[k]
            assert store.subjects[k]
            assert store.shape(k)
    gate.wait()  # type: ignore[attr-defined]
    out.put(proportional_bytes())  # type: ignore[attr-defined]
    gate.wait()  # type: ignore[attr-defined]


def inside(folder: str, workers: int) -> None:
    """Run in a fresh process: open (or not, without a folder), fork, and print seconds and bytes."""
    from viewalign.data.store import Store
    from viewalign.training.data import number_subjects

    begin = time.perf_counter()
    store = Store.open(folder) if folder else None
    seconds = time.perf_counter() - begin
    subjects = number_subjects(store.subjects) if store else None
    context = multiprocessing.get_context("fork")
    gate, out = context.Barrier(workers + 1), context.Queue()
    children = [context.Process(target=look, args=(store, gate, out)) for _ in range(workers)]
    for child in children:
        child.start()
    gate.wait()
    held = proportional_bytes() + sum(out.get() for _ in children)
    gate.wait()
    for child in children:
        child.join()
    print(json.dumps({"seconds": seconds, "bytes": held, "subjects": 0 if subjects is None else int(subjects[-1])}))


def fresh(folder: str, workers: int) -> dict[str, float]:
    """Run `inside` in a new interpreter."""
    command = [sys.executable, __file__, "--inside", folder, "--workers", str(workers)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    result: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure every number of workers and print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 8])
    parser.add_argument("--inside", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        inside(arguments.inside, arguments.workers[0])
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), arguments.images)
        for workers in arguments.workers:
            with_index, without = fresh(name, workers), fresh("", workers)
            megabytes = (with_index["bytes"] - without["bytes"]) / 1e6
            rows.append(
                {"workers": workers, "seconds": round(with_index["seconds"], 3), "megabytes": round(megabytes, 1)}
            )
            print(json.dumps(rows[-1]), flush=True)
    worst = max(max(row["seconds"] / SECONDS, row["megabytes"] * 1e6 / BYTES) for row in rows)
    print(json.dumps({"name": "catalogue", "ratio": round(worst, 3), "target": 1.0, "cases": rows}))


if __name__ == "__main__":
    main()
