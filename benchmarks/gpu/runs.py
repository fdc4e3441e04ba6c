"""Whole runs of the small networks: beside the CPU's, resumed, deterministic, in parts, recomputed, exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from session import Facts, Session, check, rounded

from viewalign.training.gpu import check as limits
from viewalign.training.gpu.small_runs import difference, resumed, settings_for_comparison, small_run
from viewalign.weights import checkpoints
from viewalign.weights.encoder import load_encoder
from viewalign.weights.export import export_run

EQUAL_IN_HALF = 0.05
"""Largest relative difference of a loss curve in 16 bits from that in float32, over six steps."""


def small_runs(recipe: str, session: Session) -> Facts:
    """Pretrain a small network in several ways and compare the losses."""
    quiet = [*settings_for_comparison(recipe), *session.small_settings]
    full = [*session.small_settings, *(["network.drop_path=0.2"] if "primus" in recipe else [])]
    device = session.device.type
    base = session.new_run()

    def run(*settings: str, on: str = device, out: Path | None = None) -> list[float]:
        return small_run(recipe, session.small, out or session.new_run(), on, settings)

    reference, losses = run(*quiet, on="cpu"), run(*quiet, out=base)
    again = resumed(recipe, session.small, base, device, quiet)
    checks = [
        check("loss against the CPU", difference(losses, reference), limits.LOSS_DIFFERENCE),
        check("loss after resuming", difference(again, losses), limits.RESUME_DIFFERENCE),
    ]
    for name, setting in (("in two parts", "runtime.accumulate=2"), ("recomputed", "runtime.recompute=true")):
        checks.append(check(f"loss {name}", difference(run(*quiet, setting), losses), limits.LOSS_DIFFERENCE))
    low = run(*quiet, f"runtime.precision={session.half}")
    checks.append(check(f"loss in {session.half}", difference(low, losses), EQUAL_IN_HALF))
    checks += _deterministic(recipe, session, full)
    checks.append(check("exported features against the CPU", _exported(session, base), limits.LOSS_DIFFERENCE))
    return {"losses": [rounded(value, 6) for value in losses], "checks": checks}


def _deterministic(recipe: str, session: Session, settings: Sequence[str]) -> list[Facts]:
    """Run twice with `runtime.deterministic=true`; losses and weights must be equal to the last bit."""
    runs = [session.new_run() for _ in range(2)]
    curves = [
        small_run(recipe, session.small, run, session.device.type, [*settings, "runtime.deterministic=true"])
        for run in runs
    ]
    first, second = ((checkpoints.load_newest(run / "checkpoints") or {})["method"] for run in runs)
    unequal = sum(not torch.equal(value, second[name]) for name, value in first.items())
    return [
        check("deterministic: loss of a second run", difference(*curves), 0.0),
        check("deterministic: weights that differ", unequal, 0.0),
    ]


def _exported(session: Session, run: Path) -> float:
    """Return the relative difference of an exported encoder's features on the device and on the CPU."""
    encoder = load_encoder(export_run(run))
    image = torch.randn(2, 1, *encoder.size)
    with torch.no_grad():
        here = encoder(image).pooled
        there = encoder.to(session.device)(image.to(session.device)).pooled.cpu()
    return float((there - here).norm() / here.norm())
