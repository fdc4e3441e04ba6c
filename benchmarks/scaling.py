"""Step time against batch, view size and processes; and the arithmetic for many GPUs.

`python benchmarks/scaling.py [--network resenc-xs] [--steps 12]` measures whole runs (`viewalign pretrain` on made-up
volumes, one thread a process): seconds a step at several batches and view sizes, and two processes beside one with the
same global batch. The last line is one JSON object; `ratio` is the time of a step on two processes over half of that
on one, 1 when nothing is lost. It wants two free cores.

`python benchmarks/scaling.py --arithmetic` works out, from the networks themselves, what 8 and 64 GPUs send each other
in a step and what their disks must give.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

import numpy as np

from viewalign.data.store import store_from_arrays
from viewalign.methods.registry import build_method
from viewalign.recipes.loading import load, to_yaml
from viewalign.training.run import view_sampling_config
from viewalign.views.samples import enclosing_box
from viewalign.views.sampling import sample_pair
from viewalign.weights.run_folder import read_log

TARGET = 1.25
CASES = ((2, 32, 1), (4, 32, 1), (8, 32, 1), (8, 32, 2), (4, 48, 1), (4, 16, 1))
"""Global batch, view side, processes."""
WARMUP = 3
BODY = (180, 216, 180)
"""A head at 1 mm, for the input's arithmetic."""


def run_case(folder: Path, store: Path, network: str, case: tuple[int, int, int], steps: int) -> dict[str, float]:
    """Train for a few steps and return the median rate after the first few."""
    batch, size, processes = case
    out = folder / f"b{batch}s{size}p{processes}"
    settings = [f"batch={batch}", f"views.patch_size={size}", f"steps={steps}", f"data={store}", f"out={out}"]
    settings += ["log.every=1", "validate.every=0", "log.health_every=100000", "log.tensorboard=false"]
    settings += ["runtime.device=cpu", "runtime.precision=fp32", "runtime.threads=1", "runtime.workers=0"]
    settings += [f"runtime.gpus={processes}", "heads.norm=batch", "checkpoint.every=100000"]
    recipe = folder / f"{out.name}.yaml"
    recipe.write_text(to_yaml(load(f"cva-{network}", settings)))
    command = [sys.executable, "-m", "viewalign", "pretrain", str(recipe)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [row for row in read_log(out / "log.jsonl") if row["kind"] == "train"][WARMUP:-1]
    seconds = median(batch / row["samples_per_second"] for row in rows)
    return {"batch": batch, "size": size, "processes": processes, "step_s": round(seconds, 3)}


def measure(network: str, steps: int) -> tuple[list[dict[str, float]], float]:
    """Measure every case; return the rows and the loss by a second process."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = {f"s{k:02d}": rng.normal(size=(72, 72, 72)).astype(np.float32) for k in range(16)}
        store_from_arrays(folder / "store", arrays)
        rows = []
        for case in CASES:
            rows.append(run_case(folder, folder / "store", network, case, steps))
            print(json.dumps(rows[-1]), flush=True)
    step = {(row["batch"], row["size"], row["processes"]): row["step_s"] for row in rows}
    return rows, step[8, 32, 2] / (step[8, 32, 1] / 2)


def traffic(name: str, processes: int, per_process: int, draws: int = 200) -> dict[str, float]:
    """Work out a step's bytes for one of `processes` with `per_process` volumes each.

    Gradients are float32 and summed by a ring, which sends 2·(n − 1)/n of them from every process. Embeddings are those
    of two networks and two views. Input is the mean float32 super-crop of a head-sized volume, before compression.
    """
    recipe = load(name, [f"batch={processes * per_process}"])
    method = build_method(recipe)
    learnt = sum(p.numel() for p in method.parameters() if p.requires_grad)
    drawing = view_sampling_config(recipe.views)
    crops = []
    for k in range(draws):
        pair = sample_pair(np.random.default_rng(k), BODY, drawing)
        start, stop = enclosing_box(pair.to_volume, drawing.size, BODY)
        crops.append(4.0 * np.prod(np.subtract(stop, start)))
    return {
        "processes": processes,
        "volumes_a_process": per_process,
        "parameters": learnt,
        "gradients_sent_mb": round(2 * (processes - 1) / processes * 4 * learnt / 1e6, 1),
        "embeddings_sent_kb": round(4 * per_process * recipe.heads.width * 4 / 1e3, 1),
        "embeddings_held_mb": round(processes * 4 * per_process * recipe.heads.width * 4 / 1e6, 2),
        "logits_mb": round((4 * per_process) * (4 * per_process * processes) * 4 / 1e6, 3),
        "input_a_volume_mb": round(mean(crops) / 1e6, 1),
        "input_a_process_mb": round(per_process * mean(crops) / 1e6, 1),
    }


def main() -> None:
    """Measure or calculate, and print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resenc-xs")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--arithmetic", action="store_true")
    arguments = parser.parse_args()
    if arguments.arithmetic:
        for name in ("cva-resenc-l", "cva-primus-m"):
            for processes in (8, 64):
                print(json.dumps({"recipe": name, **traffic(name, processes, 4)}), flush=True)
        return
    rows, ratio = measure(arguments.network, arguments.steps)
    print(json.dumps({"name": "scaling", "ratio": round(ratio, 4), "target": TARGET, "cases": rows}))


if __name__ == "__main__":
    main()
