"""Train while being killed, starved and lied to; then show that the run is the one that was left alone.

python benchmarks/soak.py [--minutes 60] [--seed 0]

Two runs are made twice, undisturbed and disturbed: one process with a loader worker, and two processes (gloo). The
store holds a volume of NaN and one whose file is gone. Faults: SIGKILL, SIGTERM, a dying loader worker, a dying rank, a
removed checkpoint, a full disk (RLIMIT_FSIZE, set on the living process, so that no mount is needed).
The ratio is the worst of memory and open files late ÷ early in the undisturbed run, or 99 where a loss curve differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import blosc2
import numpy as np

from viewalign.volumes.store import store_from_arrays

TIMES = {"samples_per_second", "data_wait"}
SMALL = [
    "views.size=[16,16,16]", "heads.width=16", "heads.predictor_width=8", "batch=4", "optim.warmup=2",
    "runtime.precision=fp32", "runtime.threads=1", "runtime.accelerator=cpu", "runtime.bad_steps=100000",
    "runtime.lost_share=0.9", "log.every=5", "log.health_every=50", "log.tensorboard=false", "validate.every=0",
    "checkpoint.every=20",
]  # fmt: skip
TRACKS = {"one": ["runtime.workers=1"], "two": ["runtime.workers=0", "runtime.devices=2"]}
FAULTS = {
    "one": ["SIGKILL", "SIGTERM", "loader worker", "checkpoint removed", "disk full"],
    "two": ["SIGKILL", "SIGTERM", "rank", "checkpoint removed"],
}


def make_store(folder: Path) -> None:
    """Sixteen volumes, one of them of NaN, and one whose file is then removed."""
    rng = np.random.default_rng(0)
    arrays = {f"case{k:02d}": rng.normal(size=(20, 22, 24)).astype(np.float32) for k in range(16)}
    store_from_arrays(folder, arrays)
    spoilt = blosc2.open(str(next(path for path in folder.rglob("*.b2nd") if "case03" in str(path))), mode="a")
    spoilt[:] = np.full(spoilt.shape, np.nan, dtype=spoilt.dtype)
    next(path for path in folder.rglob("*.b2nd") if "case07" in str(path)).unlink()


def start(root: Path, track: str, name: str, steps: int) -> subprocess.Popen[bytes]:
    """Begin a run or go on with it."""
    settings = [f"data={root / 'store'}", f"out={root / name}", f"steps={steps}", *SMALL, *TRACKS[track]]
    command = [sys.executable, "-m", "viewalign", "pretrain", "cva-resenc-xs", *settings, "--resume", "auto"]
    with (root / f"{name}.txt").open("ab") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def rows_of(run: Path) -> list[dict[str, object]]:
    """Return what the run computed: no times, nothing of its interruptions."""
    file = run / "log.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    kept = [row for row in rows if row["kind"] in {"train", "health"}]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in kept]


def watch(process: subprocess.Popen[bytes]) -> tuple[list[int], list[int]]:
    """Wait for a run to end; return its memory (kB) and its number of open files, a few times a second."""
    memory, files = [], []
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            files.append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
            memory.append(int(status.split("VmRSS:")[1].split()[0]))
        except (OSError, IndexError):
            break
        time.sleep(0.25)
    process.wait()
    return memory, files


def growth(values: list[int]) -> float:
    """Return the median of the last quarter over that of the second, when all is warm."""
    quarter = len(values) // 4
    if quarter < 2:
        return 1.0
    return statistics.median(values[-quarter:]) / statistics.median(values[quarter : 2 * quarter])


def strike(process: subprocess.Popen[bytes], fault: str, run: Path, rng: random.Random) -> None:
    """Do a run harm."""
    young = children(process.pid)
    if fault in ("loader worker", "rank") and young:
        os.kill(rng.choice(young), signal.SIGKILL)
    elif fault == "disk full":
        hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, hard))
        time.sleep(2)
        if process.poll() is None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    elif fault == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        process.kill()
        process.wait()
        present = sorted((run / "checkpoints").glob("step_*"))
        if fault == "checkpoint removed" and len(present) > 1:
            (present[-1] / "state.pt").unlink()


def disturbed(root: Path, track: str, steps: int, seconds: float, seed: int) -> Counter[str]:
    """Run with faults for a time, then to the end."""
    rng, name, struck = random.Random(seed), f"{track}-disturbed", Counter[str]()
    until = time.monotonic() + seconds
    for _ in range(10_000):
        before = len(rows_of(root / name))
        process = start(root, track, name, steps)
        while process.poll() is None and len(rows_of(root / name)) <= before and time.monotonic() < until:
            time.sleep(0.2)
        pause = time.monotonic() + rng.uniform(0.2, 6.0)
        while process.poll() is None and time.monotonic() < pause:
            time.sleep(0.1)
        if process.poll() is None and time.monotonic() < until:
            fault = rng.choice(FAULTS[track])
            strike(process, fault, root / name, rng)
            struck[fault] += 1
        if process.wait() == 0:
            break
    return struck


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    root, worst, facts = Path(tempfile.mkdtemp(prefix="soak-")), 0.0, {}
    try:
        make_store(root / "store")
        for track, share in (("one", 0.65), ("two", 0.35)):
            seconds = given.minutes * 60 * share
            began = time.monotonic()
            watch(start(root, track, f"{track}-short", 20))
            first = time.monotonic() - began
            began = time.monotonic()
            watch(start(root, track, f"{track}-longer", 80))
            each = max((time.monotonic() - began - first) / 60, 0.01)
            steps = max(60, int(seconds * 0.25 / each) // 20 * 20)
            memory, files = watch(start(root, track, f"{track}-calm", steps))
            struck = disturbed(root, track, steps, seconds * 0.5, given.seed)
            calm, tried = rows_of(root / f"{track}-calm"), rows_of(root / f"{track}-disturbed")
            same = bool(calm) and calm[-1]["step"] == steps and calm == tried
            tracebacks = (root / f"{track}-disturbed.txt").read_text().count("Traceback")
            ratio = max(growth(memory), growth(files)) if same else 99.0
            worst = max(worst, ratio)
            facts[track] = {
                "steps": steps, "rows": len(calm), "same_curve": same, "faults": dict(struck), "tracebacks": tracebacks,
                "memory": round(growth(memory), 3), "files": round(growth(files), 3),
            }  # fmt: skip
            print(track, json.dumps(facts[track]), flush=True)
            if not same or tracebacks:
                print((root / f"{track}-disturbed.txt").read_text()[-3000:], flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps({"name": "soak", "ratio": round(worst, 3), "target": 1.05, **facts}))


if __name__ == "__main__":
    main()
