"""Train while being killed, starved and lied to; then show that the run is the one that was left alone.

python benchmarks/soak.py [--minutes 60] [--seed 0]

Two runs are made twice, undisturbed and disturbed: one process with a loader worker, and two processes (gloo). Each
goes on for its share of the time; what both came to is compared, row by row and to the last bit. The store holds a
volume of NaN and one whose file is gone. Faults: SIGKILL, SIGTERM, a dying loader worker, a dying rank, a removed
checkpoint, a full disk (RLIMIT_FSIZE, set on the living process, so that no mount is needed).
The ratio is the worst of memory and open files late ÷ early in the undisturbed run, its readers and ranks included; or
99 where a loss curve differs or a traceback was seen.
"""

from __future__ import annotations

import argparse
import contextlib
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

from viewalign.data.store import store_from_arrays
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import read_log

TIMES = {"samples_per_second", "data_wait"}
SMALL = [
    "views.patch_size=[16,16,16]", "heads.width=16", "heads.predictor_width=8", "batch=4", "optim.warmup_steps=2",
    "runtime.precision=fp32", "runtime.threads=1", "runtime.device=cpu", "runtime.bad_steps=100000",
    "runtime.lost_share=0.9", "log.every=5", "log.health_every=50", "log.tensorboard=false", "validate.every=0",
    "checkpoint.every=10",
]  # fmt: skip
SHARES = {"one": 0.65, "two": 0.35}
TRACKS = {"one": ["runtime.workers=1"], "two": ["runtime.workers=0", "runtime.gpus=2"]}
FAULTS = {
    "one": ["SIGKILL", "SIGTERM", "loader worker", "checkpoint removed", "disk full"],
    "two": ["SIGKILL", "SIGTERM", "rank", "checkpoint removed", "disk full"],
}
SAID = {
    "resumed": "Going on from step",
    "stopped and saved": "Stopped and saved at step",
    "checkpoint damaged": "cannot be read (",
    "log kept waiting": "The log cannot be written",
    "rank lost": "Another process of this run ended",
}
"""What a run says of the faults that it met, in its output; counted, so that a fault that struck nothing is seen."""


def make_store(folder: Path) -> None:
    """Sixteen volumes, one of them of NaN, and one whose file is then removed."""
    rng = np.random.default_rng(0)
    arrays = {f"case{k:02d}": rng.normal(size=(20, 22, 24)).astype(np.float32) for k in range(16)}
    store_from_arrays(folder, arrays)
    spoilt = blosc2.open(str(next(path for path in folder.rglob("*.b2nd") if "case03" in str(path))), mode="a")
    spoilt[:] = np.full(spoilt.shape, np.nan, dtype=spoilt.dtype)
    next(path for path in folder.rglob("*.b2nd") if "case07" in str(path)).unlink()


def start(root: Path, name: str, track: str) -> subprocess.Popen[bytes]:
    """Begin a run or go on with it; it would never end by itself."""
    places = [str(root / "store"), "-o", str(root / name)]
    settings = ["steps=1000000", *SMALL, *TRACKS[track]]
    command = [sys.executable, "-m", "viewalign", "pretrain", "cva-resenc-xs", *places, *settings, "--resume"]
    with (root / f"{name}.txt").open("ab") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a run to save and end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait()


def newest_step(run: Path) -> int:
    return max(checkpoints.steps(run / "checkpoints"), default=0)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def rows_of(run: Path) -> list[dict[str, object]]:
    """Return what the run computed: no times, nothing of its interruptions."""
    file = run / "log.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    kept = [row for row in rows if row["kind"] in {"train", "health"}]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in kept]


def facts_of(pid: int) -> tuple[int, int]:
    """Return the memory (kB) and the number of open files of a process and of those that it started."""
    memory = files = 0
    for one in [pid, *children(pid)]:
        with contextlib.suppress(OSError, IndexError):
            memory += int(Path(f"/proc/{one}/status").read_text().split("VmRSS:")[1].split()[0])
            files += len(list(Path(f"/proc/{one}/fd").iterdir()))
    return memory, files


def watch(process: subprocess.Popen[bytes], run: Path, seconds: float) -> tuple[list[int], list[int]]:
    """Look at a run for a time; return its memory and open files, a few times a second, since its first steps."""
    seen, until = [], time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        if seen or rows_of(run):
            seen.append(facts_of(process.pid))
        time.sleep(0.25)
    kept = [pair for pair in seen if all(pair)]
    return [memory for memory, _ in kept], [files for _, files in kept]


def growth(values: list[int]) -> float:
    """Return the median of the last quarter over that of the second, when all is warm."""
    quarter = len(values) // 4
    if quarter < 2:
        return 1.0
    return statistics.median(values[-quarter:]) / statistics.median(values[quarter : 2 * quarter])


def fill_disk(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let no file of a run grow for a while: neither log nor checkpoint nor what it says."""
    hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, hard))
        time.sleep(seconds)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))


def strike(process: subprocess.Popen[bytes], fault: str, run: Path, rng: random.Random) -> bool:
    """Do a run harm; returns whether there was something to harm."""
    if fault in ("loader worker", "rank"):
        young = children(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(young), signal.SIGKILL) if young else None
        return bool(young)
    if fault == "disk full":
        fill_disk(process, rng.uniform(1, 8))
    elif fault == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        process.kill()
        process.wait()
        present = sorted((run / "checkpoints").glob("step_*/state.pt"))  # not what an earlier strike emptied
        if fault == "checkpoint removed" and len(present) > 1:
            present[-1].unlink()
            return True
        return fault == "SIGKILL"
    return True


def wait_for_progress(process: subprocess.Popen[bytes], run: Path, until: float, rng: random.Random) -> None:
    """Let a run get on by some rows of its log and a moment more, or by none: some strikes are to meet the start."""
    wanted = rng.randint(1, 8) if rng.random() < 0.85 else 0
    lowest = len(rows_of(run))  # a resumed run first cuts its log back
    while process.poll() is None and time.monotonic() < until:
        now = len(rows_of(run))
        lowest = min(lowest, now)
        if now - lowest >= wanted:
            break
        time.sleep(0.2)
    pause = min(until, time.monotonic() + rng.uniform(0.0, 1.5 if wanted else 15.0))
    while process.poll() is None and time.monotonic() < pause:
        time.sleep(0.05)


def disturbed(root: Path, track: str, last: int, seconds: float, seed: int) -> tuple[Counter[str], Counter[int | None]]:
    """Run with faults for a time or past a step; returns how often each struck, and with which codes runs ended.

    A fault comes again only when all have come.
    """
    rng, struck, ended, fresh = random.Random(seed), Counter[str](), Counter[int | None](), list[str]()
    run, until = root / f"{track}-disturbed", time.monotonic() + seconds
    while time.monotonic() < until and newest_step(run) < last:
        process = start(root, f"{track}-disturbed", track)
        while process.poll() is None and time.monotonic() < until and newest_step(run) < last:
            wait_for_progress(process, run, until, rng)
            if process.poll() is None and time.monotonic() < until:
                fresh = fresh or rng.sample(FAULTS[track], len(FAULTS[track]))
                fault = fresh.pop()
                struck[fault] += strike(process, fault, run, rng)
                time.sleep(1)
        stop(process)
        ended[process.returncode] += 1
    return struck, ended


def return_diagnostics(root: Path, track: str, minutes: float, seed: int) -> tuple[float, dict[str, object]]:
    """Make a track's two runs; return its ratio and what there is to tell."""
    process = start(root, f"{track}-calm", track)
    memory, files = watch(process, root / f"{track}-calm", minutes * 60 * 0.35)
    if process.poll() is not None:
        sys.exit("The undisturbed run broke off:\n" + (root / f"{track}-calm.txt").read_text()[-3000:])
    stop(process)
    last = newest_step(root / f"{track}-calm")
    struck, ended = disturbed(root, track, last, minutes * 60 * 0.65, seed)
    calm, tried = (rows_of(root / f"{track}-{name}") for name in ("calm", "disturbed"))
    common = min(len(calm), len(tried))
    apart = next((pair for pair in zip(calm, tried, strict=False) if pair[0] != pair[1]), None)
    said = (root / f"{track}-disturbed.txt").read_text(errors="replace")
    told = read_log(root / f"{track}-disturbed" / "log.jsonl")
    nan = [row for row in told if row.get("event") == "skipped" and row["not_finite"] == [3]]
    facts: dict[str, object] = {
        "calm_steps": last, "disturbed_steps": newest_step(root / f"{track}-disturbed"), "rows_compared": common,
        "same_curve": apart is None and common > 0, "faults": dict(sorted(struck.items())),
        "ended": {str(code): count for code, count in ended.items()},
        "said": {name: said.count(text) for name, text in SAID.items()},
        "steps_with_nan": len(nan), "volume_gone": said.count("is set aside") > 0,
        "tracebacks": said.count("Traceback"), "memory": round(growth(memory), 3), "files": round(growth(files), 3),
    }  # fmt: skip
    print(track, json.dumps(facts), flush=True)
    good = facts["same_curve"] and not facts["tracebacks"]
    if not good:
        print(said[-8000:], "first difference:", apart, flush=True)
    return max(growth(memory), growth(files)) if good else 99.0, facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        make_store(root / "store")
        found = {
            track: return_diagnostics(root, track, given.minutes * share, given.seed) for track, share in SHARES.items()
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)
    facts = {track: told for track, (_, told) in found.items()}
    ratio = max(one for one, _ in found.values())
    print(json.dumps({"name": "soak", "ratio": round(ratio, 3), "target": 1.05, **facts}))


if __name__ == "__main__":
    main()
