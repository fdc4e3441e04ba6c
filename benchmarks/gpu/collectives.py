"""Two processes on one device: gloo's sums and gathers of the device's tensors give the losses of one process.

NCCL refuses two processes on one GPU, so that it is not used here. Run as a program, this file is one of the processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

from session import Facts, Session, check

from viewalign.recipes.loading import load, to_yaml
from viewalign.training import launch
from viewalign.training.gpu.small_runs import difference, small_recipe, small_run
from viewalign.training.launch import DDPStrategy
from viewalign.training.run import pretrain
from viewalign.weights.run_folder import read_log

RECIPE = "cva-resenc-xs"
EQUAL = 1e-6
"""Largest relative difference of losses in float64."""


def collectives(session: Session) -> Facts:
    """Pretrain a small network in one process and in two, in float64; the losses must be equal."""
    steps = 3 if session.tiny else 6
    settings = [
        f"steps={steps}", "batch=4", "log.health_every=1000", "checkpoint.every=1000", "runtime.workers=0",
        "runtime.precision=fp64", "optim.name=sgd", "optim.momentum=0.9", "optim.lr=0.0005",
        *(["views.patch_size=24", "heads.width=16"] if session.tiny else []),
    ]  # fmt: skip
    alone = small_run(RECIPE, session.small, session.new_run(), session.device.type, settings)
    out = session.new_run()
    both = small_recipe(RECIPE, session.small, out, session.device.type, [*settings, "runtime.nodes=2"])
    file = out.with_suffix(".yaml")
    file.write_text(to_yaml(both))
    _run_processes(file, 2, 600.0 if session.tiny else 90.0)
    together = [row["loss"] for row in read_log(out / "log.jsonl") if row["kind"] == "train"]
    return {
        "losses": together,
        "checks": [check("loss of two processes against one", difference(together, alone), EQUAL)],
    }


def _run_processes(recipe: Path, count: int, seconds: float) -> None:
    """Run a recipe in several processes that take each other for other machines, so that all use the first GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    running = []
    try:
        for rank in range(count):
            environment = {**os.environ, **place, "NODE_RANK": str(rank), "PYTHONPATH": path}
            with recipe.with_suffix(f".{rank}.txt").open("wb") as log:
                command = [sys.executable, "-W", "ignore", __file__, str(recipe)]
                running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        codes = [process.wait(seconds) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    if any(codes):
        said = "\n".join(recipe.with_suffix(f".{rank}.txt").read_text()[-600:] for rank in range(count))
        raise RuntimeError(f"The processes ended with {codes}: {said}")


def main() -> None:
    """Pretrain a recipe as one of several processes that talk by gloo."""
    with mock.patch.object(launch, "DDPStrategy", partial(DDPStrategy, process_group_backend="gloo")):
        pretrain(load(sys.argv[1]))


if __name__ == "__main__":
    main()
