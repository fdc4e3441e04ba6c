"""A whole CVA step against its own modules bare.

`python benchmarks/step.py [--networks resenc-l primus-m] [--size 64] [--precisions bf16 fp32]`

Two volumes (four crops). The floor runs, in the same process and on the same tensors, what no implementation can leave
out: student forward and backward with its decoder, teacher encoder forward, both through their heads on as many
vectors as the order has, clipping, the fused optimizer and the moving average. The step adds masks, correspondence,
reading aligned features, padding-aware pooling and all losses. The last line is one JSON object; `ratio` is the worst
case.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from viewalign.methods.cva import ConsistentViewAlignment
from viewalign.methods.registry import build_method
from viewalign.methods.rng import block_masks
from viewalign.networks.registry import PRIMUS
from viewalign.networks.teacher import update_ema
from viewalign.recipes.loading import load
from viewalign.training.optimizers import build_optimizer, clip_gradients
from viewalign.views.batch import ViewBatch, build_views
from viewalign.views.feature_grids import common_grid
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

TARGET = 1.15
LATTICE = 343


def make_batch(size: int, volumes: int = 2) -> ViewBatch:
    """Draw views of random volumes of the size that published runs read."""
    source = ArraySource(np.random.default_rng(0).normal(size=(round(1.6 * size),) * 3), count=volumes)
    every = np.arange(volumes)
    reader = SampleReader(source, every, every, ViewSamplingConfig((size, size, size)), volumes, 0)
    return build_views([reader[k] for k in range(volumes)], (size, size, size), None)


def bare_step(method: ConsistentViewAlignment, batch: ViewBatch, order: str) -> torch.Tensor:
    """Run the modules alone; sums stand in for losses."""
    images, student, teacher = batch.views.flatten(0, 1), method.student, method.teacher
    encoded = student.backbone.encode(images, block_masks(batch, 0, student.backbone.block, 0.75))
    maps = student.backbone.dense(encoded)
    with torch.no_grad():
        target = teacher.backbone.dense(teacher.backbone.encode(images))
    loss = student.backbone.reconstruct(encoded).float().mean()
    grid = common_grid(student.backbone.grids(batch.size))
    vectors = LATTICE if order == "align_first" else grid[0] * grid[1] * grid[2]
    ones, few = torch.ones(len(images) * vectors), torch.ones(len(images))
    for branch, features, context in ((student, maps, torch.enable_grad()), (teacher, target, torch.no_grad())):
        head = branch.pooled_head()
        assert head is not None
        with context:
            pooled = torch.cat([m.float().mean((2, 3, 4)) for m in features], dim=1)
            rows = pooled.repeat_interleave(vectors, dim=0)
            out = head(rows, ones).mean() + head(pooled, few).mean()
        loss = loss + out
    return loss


def measure(run: Callable[[], torch.Tensor], finish: Callable[[], None], low: bool, repeats: int) -> list[float]:
    """Time forward, backward and update; the first run warms up and is left out."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = run()
        loss.backward()
        finish()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def compare(network: str, size: int, order: str, low: bool, repeats: int) -> dict[str, object]:
    """Measure one case: the step and its floor, by turns."""
    torch.manual_seed(0)
    settings = [f"views.patch_size={size}", "batch=2", f"objectives.order={order}"]
    settings += ["network.drop_path=0"] if network in PRIMUS else []
    recipe = load(f"cva-{network}", settings)
    method = build_method(recipe)
    assert isinstance(method, ConsistentViewAlignment)
    optim = recipe.optim
    optimizer = build_optimizer(method, optim.name, 1e-5, optim.weight_decay, optim.momentum, optim.betas)
    batch = make_batch(size)

    def finish() -> None:
        clip_gradients(method, optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(*method._pairs, 0.995)

    ours, floor = [], []
    for _ in range(repeats):
        floor += measure(lambda: bare_step(method, batch, order), finish, low, 1)
        ours += measure(lambda: method(batch).loss, finish, low, 1)
    return {
        "network": network,
        "size": size,
        "order": order,
        "precision": "bf16" if low else "fp32",
        "step_s": round(median(ours), 3),
        "floor_s": round(median(floor), 3),
        "ratio": round(median(ours) / median(floor), 4),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Measure every case and print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resenc-l", "primus-m"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--orders", nargs="+", default=["project_first", "align_first"])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for network in arguments.networks:
        for precision in arguments.precisions:
            for order in arguments.orders:
                rows.append(compare(network, arguments.size, order, precision == "bf16", arguments.repeats))
                print(json.dumps(rows[-1]), flush=True)
    worst = max(float(str(row["ratio"])) for row in rows)
    print(json.dumps({"name": "step", "ratio": worst, "target": TARGET, "cases": rows}))


if __name__ == "__main__":
    main()
