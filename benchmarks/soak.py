"""Compare runs and stores made under random faults with undisturbed ones.

python benchmarks/soak.py [--minutes 60] [--seed 0]

Two runs are made twice, undisturbed and disturbed: one process with a loader worker, and two processes (gloo). Their
loss curves are compared row by row, to the last bit. The store holds a volume of NaN and one whose file is gone.
Faults: SIGKILL, SIGTERM, a killed loader worker, a killed rank, a stopped rank (SIGSTOP), a removed checkpoint, flipped
bits in the newest checkpoint, a full disk (RLIMIT_FSIZE, set on the living process, so that no mount is needed).
Before that, `prepare` makes one store undisturbed and one while its source folder vanishes and returns and the command
is killed; both must have the same bytes at the end, and no entry may be lost on the way.
The ratio is the worst of memory and open files late ÷ early in the undisturbed runs, readers and ranks included; or 99
where a loss curve or a store differs, a traceback was printed, or a run did not end.
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

import nibabel
import numpy as np

from viewalign.data.layout import write_entry
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
SHARES = {"prepare": 0.05, "one": 0.6, "two": 0.35}
TRACKS = {"one": ["runtime.workers=1"], "two": ["runtime.workers=0", "runtime.gpus=2"]}
ALWAYS = ["SIGKILL", "SIGTERM", "checkpoint removed", "bits flipped", "disk full"]
FAULTS = {"one": [*ALWAYS, "loader worker"], "two": [*ALWAYS, "rank killed", "rank stopped"]}
REPORTED = {
    "resumed": "Resuming from step",
    "checkpoint damaged": " is damaged: ",
    "log waits for space": "The log cannot be written",
    "no checkpoint written": "No checkpoint could be written",
    "rank lost": "Another process of this run ended",
    "does not respond": "the run does not respond and is ended",
}
"""Messages of a run about faults, counted in its output: a fault without its message has probably hit nothing."""
PATIENCE = 120.0
"""Seconds within which a run with a stopped rank must end after SIGTERM; its own limit is 25 s or four steps."""


def make_store(folder: Path) -> None:
    """Sixteen volumes, one of them of NaN, and one whose file is then removed."""
    rng = np.random.default_rng(0)
    arrays = {f"case{k:02d}": rng.normal(size=(20, 22, 24)).astype(np.float32) for k in range(16)}
    store_from_arrays(folder, arrays)
    mark = next(path for path in folder.rglob("*.json") if "case03" in str(path))
    values = np.full((1, 20, 22, 24), np.nan, dtype=np.float32)  # with a checksum, so that reading accepts it
    write_entry(folder, str(mark.relative_to(folder).with_suffix("")), values, json.loads(mark.read_text()))
    next(path for path in folder.rglob("*.b2nd") if "case07" in str(path)).unlink()


def start(root: Path, name: str, track: str) -> subprocess.Popen[bytes]:
    """Start or resume a run; it has far more steps than there is time for."""
    places = [str(root / "store"), "-o", str(root / name)]
    settings = ["steps=1000000", *SMALL, *TRACKS[track]]
    command = [sys.executable, "-m", "viewalign", "pretrain", "cva-resenc-xs", *places, *settings, "--resume"]
    # Modules imported while files may not grow would be kept cut short, so none are kept.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (root / f"{name}.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Let a run save and end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait()


def newest_step(run: Path) -> int:
    return max(checkpoints.steps(run / "checkpoints"), default=0)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def rows_of(run: Path) -> list[dict[str, object]]:
    """Return the computed values of a run's log, without times and events."""
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
    """Return a run's memory and open files, measured four times a second from its first log row on."""
    seen, until = [], time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        if seen or rows_of(run):
            seen.append(facts_of(process.pid))
        time.sleep(0.25)
    kept = [pair for pair in seen if all(pair)]
    return [memory for memory, _ in kept], [files for _, files in kept]


def growth(values: list[int]) -> float:
    """Return the median of the last quarter over that of the second, when caches are filled."""
    quarter = len(values) // 4
    if quarter < 2:
        return 1.0
    return statistics.median(values[-quarter:]) / statistics.median(values[quarter : 2 * quarter])


def fill_disk(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let no file of a run grow for a while: log, checkpoints and output."""
    hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, hard))
        time.sleep(seconds)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))


def flip_bits(file: Path, rng: random.Random) -> None:
    """Invert one bit of three bytes of a file in place."""
    with file.open("r+b") as opened:
        for _ in range(3):
            place = rng.randrange(file.stat().st_size)
            opened.seek(place)
            value = opened.read(1)[0]
            opened.seek(place)
            opened.write(bytes([value ^ (1 << rng.randrange(8))]))


def stop_a_rank(process: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """Suspend one rank for ever, then send SIGTERM to the run as a scheduler would; it must end by itself."""
    ranks = children(process.pid)
    if not ranks:
        return False
    victim = rng.choice(ranks)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        sys.exit(f"A run with a stopped rank did not end within {PATIENCE:.0f} s of SIGTERM.")
    finally:
        with contextlib.suppress(ProcessLookupError):  # a suspended process cannot notice that the run has ended
            os.kill(victim, signal.SIGKILL)
    return True


def harm_checkpoint(process: subprocess.Popen[bytes], fault: str, run: Path, rng: random.Random) -> bool:
    """Kill a run and remove or change its newest checkpoint, if there is an older one to resume from."""
    process.kill()
    process.wait()
    present = sorted((run / "checkpoints").glob("step_????????/state.pt"))  # not one that an earlier fault removed
    if len(present) < 2:
        return False
    if fault == "checkpoint removed":
        present[-1].unlink()
    else:
        flip_bits(present[-1], rng)
    return True


def strike(process: subprocess.Popen[bytes], fault: str, run: Path, rng: random.Random) -> bool:
    """Cause a fault; returns whether there was something to harm."""
    if fault == "rank stopped":
        return stop_a_rank(process, rng)
    if fault in ("checkpoint removed", "bits flipped"):
        return harm_checkpoint(process, fault, run, rng)
    if fault in ("loader worker", "rank killed"):
        started = children(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(started), signal.SIGKILL) if started else None
        return bool(started)
    if fault == "disk full":
        fill_disk(process, rng.uniform(1, 8))
    else:
        process.send_signal(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
    return True


def wait_for_progress(process: subprocess.Popen[bytes], run: Path, until: float, rng: random.Random) -> None:
    """Wait for some rows of a run's log and a moment more, or for none, so that some faults occur during the start."""
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
    """Run with faults for a time or past a step; returns the count of each fault and of each exit code.

    A fault is repeated only when all others have occurred.
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


def compare_runs(root: Path, track: str, minutes: float, seed: int) -> tuple[float, dict[str, object]]:
    """Make a track's two runs; return its ratio and its figures."""
    process = start(root, f"{track}-calm", track)
    memory, files = watch(process, root / f"{track}-calm", minutes * 60 * 0.35)
    if process.poll() is not None:
        sys.exit("The undisturbed run ended early:\n" + (root / f"{track}-calm.txt").read_text()[-3000:])
    stop(process)
    last = newest_step(root / f"{track}-calm")
    struck, ended = disturbed(root, track, last, minutes * 60 * 0.65, seed)
    calm, tried = (rows_of(root / f"{track}-{name}") for name in ("calm", "disturbed"))
    common = min(len(calm), len(tried))
    different = next((pair for pair in zip(calm, tried, strict=False) if pair[0] != pair[1]), None)
    output = (root / f"{track}-disturbed.txt").read_text(errors="replace")
    log = read_log(root / f"{track}-disturbed" / "log.jsonl")
    facts: dict[str, object] = {
        "calm_steps": last, "disturbed_steps": newest_step(root / f"{track}-disturbed"), "rows_compared": common,
        "same_curve": different is None and common > 0, "faults": dict(sorted(struck.items())),
        "ended": {str(code): count for code, count in ended.items()},
        "reported": {name: output.count(text) for name, text in REPORTED.items()},
        "steps_with_nan": sum(row.get("event") == "skipped" and row["not_finite"] == [3] for row in log),
        "volume_excluded": any(row.get("event") == "unreadable" for row in log),
        "tracebacks": output.count("Traceback"), "memory": round(growth(memory), 3), "files": round(growth(files), 3),
    }  # fmt: skip
    good = facts["same_curve"] and not facts["tracebacks"]
    if not good:
        print(output[-8000:], "first difference:", different, flush=True)
    return max(growth(memory), growth(files)) if good else 99.0, facts


def prepare(root: Path, store: str) -> subprocess.Popen[bytes]:
    with (root / f"{store}.txt").open("ab") as output:
        command = [sys.executable, "-m", "viewalign", "prepare", str(root / "scans"), "-o", str(root / store)]
        return subprocess.Popen([*command, "spacing=1", "workers=1"], stdout=output, stderr=output)


def arrays_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*.b2nd"))}


def compare_stores(root: Path, minutes: float, seed: int) -> tuple[float, dict[str, object]]:
    """Prepare one folder undisturbed and with faults (sources vanish, kills); return ratio and figures."""
    rng, numbers, until = random.Random(seed), np.random.default_rng(seed), time.monotonic() + minutes * 60
    (root / "scans").mkdir()
    for number in range(24):
        array = numbers.normal(100, 20, size=(40, 44, 48)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / "scans" / f"sub-{number:02d}_T1w.nii.gz")
    calm = prepare(root, "store-calm").wait()
    faults, lost, before = Counter[str](), 0, dict[str, bytes]()
    while time.monotonic() < until or sum(faults.values()) < 3:
        process = prepare(root, "store-disturbed")
        time.sleep(rng.uniform(1, 12))
        fault = rng.choice(["sources vanish", "SIGKILL", "SIGTERM"])
        faults[fault] += process.poll() is None
        if fault == "sources vanish":
            (root / "scans").rename(root / "scans-away")
            process.wait()
            prepare(root, "store-disturbed").wait()  # the same command while they are away
            (root / "scans-away").rename(root / "scans")
        else:
            process.send_signal(signal.SIGKILL if fault == "SIGKILL" else signal.SIGTERM)
            process.wait()
        after = arrays_of(root / "store-disturbed")
        lost += len(before.keys() - after.keys())
        before = after
    last = prepare(root, "store-disturbed").wait()
    same = arrays_of(root / "store-calm") == arrays_of(root / "store-disturbed")
    output = (root / "store-disturbed.txt").read_text(errors="replace")
    facts: dict[str, object] = {
        "entries": len(arrays_of(root / "store-calm")), "same_bytes": same, "entries_lost": lost,
        "faults": dict(sorted(faults.items())), "exit_codes": [calm, last], "tracebacks": output.count("Traceback"),
    }  # fmt: skip
    good = same and not lost and not facts["tracebacks"] and (calm, last) == (0, 0)
    if not good:
        print(output[-8000:], flush=True)
    return 1.0 if good else 99.0, facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    found: dict[str, tuple[float, dict[str, object]]] = {}
    try:
        make_store(root / "store")
        for track, share in SHARES.items():
            minutes = options.minutes * share
            if track == "prepare":
                found[track] = compare_stores(root, minutes, options.seed)
            else:
                found[track] = compare_runs(root, track, minutes, options.seed)
            print(track, json.dumps(found[track][1]), flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    ratio = max(ratio for ratio, _ in found.values())
    facts = {track: figures for track, (_, figures) in found.items()}
    print(json.dumps({"name": "soak", "ratio": round(ratio, 3), "target": 1.05, **facts}))


if __name__ == "__main__":
    main()
