"""Steps of the large networks: time and parts, achieved operations, memory, waits, kernels; and variants of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from inspection import profiled, recorded_waits
from session import Facts, Part, Session, check, rounded
from torch import _dynamo as dynamo

from viewalign.training.data import Samples
from viewalign.training.gpu import check as limits
from viewalign.training.gpu.bench import LESS_MEMORY, Bench, StepTimes, first_that_fits
from viewalign.views.batch import ViewBatch

STEPS, WARM = 6, 3


def plain(recipe: str) -> Part:
    """Return the part that times a recipe as it is and looks into a step."""

    def run(session: Session) -> Facts:
        fitting = first_that_fits(lambda more: timed(session, recipe, *more))
        if fitting is None:
            return {"skipped": f"does not fit, not even with {' '.join(LESS_MEMORY[-1])}"}
        more, (bench, times) = fitting
        waits = _within(bench, recorded_waits(session.device))
        out = {
            **described(session, bench, times, more),
            "waits": {"a_step": sum(waits.values()), "where": dict(waits.most_common(40))},
            "profile": _within(bench, profiled(session.device)),
        }
        if session.device.type == "cuda":
            out["checks"] = [check("waits a step", out["waits"]["a_step"], limits.WAITS)]
        return out

    return run


def compiled(recipe: str) -> Part:
    """Return the part that times a recipe with `runtime.compile=true` and counts what was compiled."""

    def run(session: Session) -> Facts:
        dynamo.reset()
        counted = dynamo.utils.counters
        counted.clear()
        fitting = first_that_fits(lambda more: timed(session, recipe, "runtime.compile=true", *more))
        if fitting is None:
            return {"skipped": f"does not fit, not even with {' '.join(LESS_MEMORY[-1])}"}
        more, (bench, times) = fitting
        out = described(session, bench, times, more)
        out["graphs"] = {key: dict(counted[key]) for key in ("frames", "stats", "graph_break") if key in counted}
        if session.device.type == "cuda" and not more:
            out["checks"] = [check("step, s", out["step_s"], target_seconds(session, recipe, bench))]
        return out

    return run


def target_seconds(session: Session, recipe: str, bench: Bench) -> float:
    """Return the seconds that a step should take on this card."""
    seconds: float = rounded(bench.flops / (limits.RATE_SHARE[recipe] * session.product_rate(session.half)))
    return seconds


def variants(session: Session) -> Facts:
    """Time further variants: channels-last memory, alignment before projection, recomputed activations."""
    cases: list[tuple[str, str, tuple[str, ...], Callable[[Bench], None] | None]] = [
        ("resenc-l channels_last_3d", "cva-resenc-l", (), _use_channels_last),
        ("resenc-l recompute", "cva-resenc-l", ("runtime.recompute=true",), None),
        ("primus-m recompute", "cva-primus-m", ("runtime.recompute=true",), None),
        ("resenc-l align_first", "cva-resenc-l", ("objectives.order=align_first",), None),
        ("primus-m align_first", "cva-primus-m", ("objectives.order=align_first",), None),
    ]
    rows: Facts = {}
    for name, recipe, settings, change in cases:
        if session.left() < 15:
            rows[name] = {"skipped": f"{session.left():.0f} s left"}
            continue
        try:
            bench, times = timed(session, recipe, *settings, change=change)
            rows[name] = described(session, bench, times)
        except Exception as problem:
            rows[name] = {"error": f"{type(problem).__name__}: {problem}"[:300]}
    return {"variants": rows}


def timed(
    session: Session, recipe: str, *settings: str, change: Callable[[Bench], None] | None = None
) -> tuple[Bench, StepTimes]:
    """Time steps of a recipe, fewer in a tiny check; `change` alters the bench before."""
    bench = session.bench(recipe, *settings)
    if change is not None:
        change(bench)
    return bench, bench.measure(1, 1) if session.tiny else bench.measure(STEPS, WARM)


def described(session: Session, bench: Bench, times: StepTimes, more: Sequence[str] = ()) -> Facts:
    """Return times as figures: seconds, operations a second, and their share of the measured matrix products."""
    precision = bench.recipe.runtime.precision
    rate = bench.flops / times.median
    return {
        "less_memory": list(more),
        "precision": precision,
        "batch": bench.recipe.batch,
        "view": list(bench.recipe.views.patch_size),
        "step_s": rounded(times.median),
        "slowest_s": rounded(max(times.seconds)),
        "fastest_s": rounded(min(times.seconds)),
        "parts_s": {name: rounded(seconds) for name, seconds in times.parts.items()},
        "other_s": rounded(median(times.seconds) - sum(times.parts.values())),
        "warm_up_s": rounded(times.warm_up),
        "tflop": rounded(bench.flops / 1e12, 4),
        "tflops": rounded(rate / 1e12),
        "share_of_products": rounded(rate / session.product_rate(precision)),
        "memory_gb": {name: rounded(value / 1e9) for name, value in times.memory.items()},
    }


def _within(bench: Bench, around: AbstractContextManager[Any]) -> Any:
    """Return what a context manager yields, entered around one step."""
    kept = _Kept(around)
    bench.measure(1, 1, around=kept)
    return kept.value


class _Kept(AbstractContextManager[Any]):
    """A context manager that keeps what another one yields."""

    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self._inner = inner
        self.value: Any = None

    def __enter__(self) -> Any:
        self.value = self._inner.__enter__()
        return self.value

    def __exit__(self, *problem: Any) -> bool | None:
        return self._inner.__exit__(*problem)


def _use_channels_last(bench: Bench) -> None:
    """Keep weights and views in channels-last memory."""
    build = bench.feed.build
    bench.trainer.method.to(memory_format=torch.channels_last_3d)

    def changed(samples: Samples, plain: bool) -> ViewBatch:
        batch = build(samples, plain)
        flat = batch.views.flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)
        return replace(batch, views=flat.unflatten(0, batch.views.shape[:2]))

    bench.feed = replace(bench.feed, build=changed)
