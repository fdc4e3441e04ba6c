"""The check of a GPU: agreement with the CPU, resuming, step time, memory, data wait."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from viewalign.data.worker_pool import default_workers
from viewalign.training.data import worker_count
from viewalign.training.doctor import Finding, Level
from viewalign.training.gpu import timing
from viewalign.training.gpu.bench import LESS_MEMORY, Bench, StepTimes, first_that_fits
from viewalign.training.gpu.small_runs import difference, resumed, settings_for_comparison, small_run
from viewalign.training.gpu.synthetic import HEAD, SMALL, Shape, synthetic_store
from viewalign.utils.precision import choose
from viewalign.utils.text import counted

_log = logging.getLogger(__name__)

LOSS_DIFFERENCE = 1e-2
"""Largest relative difference between the losses of a run of six steps on a GPU and on a CPU, in float32."""

RESUME_DIFFERENCE = 1e-4
"""The same between a run and a resumed run; 0 on a CPU, and on a GPU with deterministic kernels."""

DATA_WAIT = 0.01
"""Largest share of the time in which the GPU waits for data, with four workers."""

RATE_SHARE = {"cva-resenc-l": 0.23, "cva-primus-m": 0.40}
"""Share of the rate of bf16 matrix products that a compiled step should reach: 0.25 s and 0.40 s on an H100.

Computed from operations and bytes, not measured.
"""

WAITS = 1
"""Most synchronisations per step: none is known, but the first step reads its norm at once."""
_SMALL_RECIPE = "cva-resenc-xs"


@dataclass(frozen=True)
class Size:
    """Size of a check.

    Attributes:
        recipe, settings: of the network whose steps are timed.
        shape: of the volumes.
        steps: number of timed steps.
        small: settings of the small runs.
    """

    recipe: str = "cva-resenc-l"
    settings: tuple[str, ...] = ()
    shape: Shape = HEAD
    steps: int = 5
    small: tuple[str, ...] = ()


TINY = Size(
    recipe=_SMALL_RECIPE,
    settings=("views.patch_size=16", "batch=2", "heads.width=16", "runtime.precision=fp32"),
    shape=SMALL,
    steps=2,
    small=("views.patch_size=16", "batch=2", "heads.width=16", "runtime.workers=0"),
)
"""A check that takes seconds on a CPU and does not measure speed."""


def check(device: torch.device, folder: Path, size: Size) -> list[Finding]:
    """Check a device.

    Args:
        device: a GPU, or a CPU, which is then compared with itself.
        folder: for stores and runs, some GB.
        size: of the check; `Size()` takes about a minute on a fast GPU.

    Returns:
        Findings in a fixed order.
    """
    _log.info("Measuring the device's limits")
    precision = choose(device).precision
    rate = timing.product_rate(device, precision)
    copies = timing.copy_rate(device)
    words = f"{precision} matrix products {rate / 1e12:.3g} TFLOP/s, copies {copies / 1e12:.2g} TB/s"
    found = [Finding("good", "Limits", words)]
    _log.info("Running a small network here and on the CPU")
    found += _findings("Same as CPU", _small_runs(device, folder, size))
    _log.info("Timing steps of %s", size.recipe)
    found += _findings("Step", _large_steps(device, folder, size, rate))
    return found


def _findings(what: str, made: Iterator[Finding]) -> Iterator[Finding]:
    """Yield findings; an error, which a faulty driver or library may raise anywhere, becomes the last one."""
    try:
        yield from made
    except Exception as problem:
        reason = (str(problem).strip().splitlines() or [""])[0]
        yield Finding("bad", what, f"failed with {type(problem).__name__}: {reason}", "Report it with this table.")


def _small_runs(device: torch.device, folder: Path, size: Size) -> Iterator[Finding]:
    store = folder / "small"
    synthetic_store(store, 8, SMALL)
    settings = [*settings_for_comparison(_SMALL_RECIPE), *size.small]
    reference = small_run(_SMALL_RECIPE, store, folder / "reference", "cpu", settings)
    losses = small_run(_SMALL_RECIPE, store, folder / "here", device.type, settings)
    yield _compared(
        "Same as CPU",
        difference(losses, reference),
        LOSS_DIFFERENCE,
        "losses of six steps in fp32",
        "Report it with this table: the results of the GPU differ from those of the CPU.",
    )
    again = resumed(_SMALL_RECIPE, store, folder / "here", device.type, settings)
    yield _compared(
        "Resume",
        difference(again, losses),
        RESUME_DIFFERENCE,
        "losses after resuming at step 3 of 6",
        "Report it with this table: a resumed run should continue exactly.",
    )


def _compared(what: str, value: float, limit: float, words: str, remedy: str) -> Finding:
    good = value <= limit
    text = f"{words} differ by {value:.2g} at most (limit {limit:g})"
    return Finding("good" if good else "bad", what, text, "" if good else remedy)


def _large_steps(device: torch.device, folder: Path, size: Size, rate: float) -> Iterator[Finding]:
    store = folder / "large"
    synthetic_store(store, 6, size.shape)
    fitting = first_that_fits(lambda more: _timed(device, store, folder / f"large-{len(more)}", size, more))
    if fitting is None:
        words = f"{size.recipe} does not fit, even with {' '.join(LESS_MEMORY[-1])}"
        yield Finding("watch", "Memory", words, "Lower views.patch_size or use a smaller network.")
        return
    more, (bench, times) = fitting
    yield _step(bench, times.median, rate, more)
    yield _memory(device, times.memory, more)
    yield _data_wait(bench, size.steps)


def _timed(device: torch.device, store: Path, out: Path, size: Size, more: Sequence[str]) -> tuple[Bench, StepTimes]:
    bench = Bench(size.recipe, [*size.settings, *more], store, out, device.type)
    return bench, bench.measure(size.steps)


def _step(bench: Bench, seconds: float, rate: float, more: Sequence[str]) -> Finding:
    share = bench.flops / seconds / rate
    level: Level = "good" if share >= RATE_SHARE.get(bench.name, 0.0) / 2 else "watch"
    words = (
        f"{' '.join([bench.name, *more])}: {seconds:.3g} s, batch {bench.recipe.batch}, "
        f"{bench.recipe.runtime.precision}, {share:.1%} of the matrix products"
    )
    remedy = (
        "Check with `nvidia-smi` whether other programs use the GPU; otherwise report it with this table."
        if level != "good"
        else ""
    )
    return Finding(level, "Step", words, remedy)


def _memory(device: torch.device, memory: dict[str, int], more: Sequence[str]) -> Finding:
    if not memory:
        return Finding("good", "Memory", "not measured on a CPU")
    total = torch.cuda.get_device_properties(device).total_memory
    peak, reserved = (memory[name] / 1e9 for name in ("allocated", "reserved"))
    words = f"{peak:.1f} GB at most, {reserved:.1f} GB reserved of {total / 1e9:.0f} GB"
    if not more:
        return Finding("good", "Memory", words)
    return Finding(
        "watch", "Memory", f"{words}; more is needed without {' '.join(more)}", f"Train with {' '.join(more)}."
    )


def _data_wait(bench: Bench, steps: int) -> Finding:
    here = bench.recipe.runtime.workers
    workers = worker_count(here, bench.device.type == "cuda", os.cpu_count() or 1, allowed=default_workers())
    found = bench.data_wait(workers, steps)
    share = found["data_wait"]
    level: Level = "good" if share <= DATA_WAIT else "watch"
    words = f"{share:.1%} of the time with {counted(workers, 'worker')}, {found['volumes_per_second']:.3g} volumes/s"
    remedy = "Raise runtime.workers up to the number of cores." if level != "good" else ""
    return Finding(level, "Data wait", words, remedy)
