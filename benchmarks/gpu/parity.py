"""One step of every method on the device against the CPU: views, loss and gradients, without TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from session import Facts, Session, check, rounded
from torch import Tensor

from viewalign.config import Recipe
from viewalign.data.store import Store
from viewalign.methods.base import Method
from viewalign.methods.registry import METHODS, build_method, requirements_of
from viewalign.recipes.loading import load
from viewalign.training.gpu.small_runs import settings_for_comparison
from viewalign.training.run import view_sampling_config
from viewalign.views.batch import build_views
from viewalign.views.samples import Sample, SampleReader

LIMITS = {"views": 1e-4, "loss": 1e-3, "gradient": 2e-2, "half_loss": 5e-2}
"""Relative differences: ‖a − b‖ ÷ ‖b‖ of views and of all gradients as one vector, |a − b| ÷ |b| of losses."""
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
FURTHER = (
    ("cva-resenc-xs", "objectives.order=project_first"),
    ("cva-resenc-xs", "objectives.consistency=nt_xent"),
    ("cva-resenc-xs", "objectives.consistency=gram"),
    ("cva-resenc-xs", "views.independent=true"),
    ("cva-primus-xs", "objectives.order=project_first"),
)


def parity(session: Session) -> Facts:
    """Compare every method and network; the worst of each figure is a check."""
    cases: list[tuple[str, ...]] = [(f"{m}-{family}-xs",) for m, entry in METHODS.items() for family in entry.networks]
    cases += FURTHER
    if session.tiny:
        cases = [case for case in cases if case[0].startswith(("cva-resenc", "mae-primus"))][:2]
    rows: Facts = {}
    store = Store.open(session.small)
    for case in cases:
        if session.left() < 8:
            break
        with _exact_products():
            try:
                rows["+".join(case)] = _compare(session, store, *case)
            except Exception as problem:
                rows["+".join(case)] = {"error": f"{type(problem).__name__}: {problem}"[:300]}
        session.free()
    worst = {name: _worst(rows, name) for name in LIMITS}
    checks = [check(f"worst {name}", worst[name], limit) for name, limit in LIMITS.items()]
    return {"planned": len(cases), "cases": rows, "checks": checks}


def _worst(rows: Facts, name: str) -> float:
    """Return the largest figure; NaN where a case failed."""
    return float(np.max([row.get(name, float("nan")) for row in rows.values()])) if rows else float("nan")


@contextmanager
def _exact_products() -> Iterator[None]:
    """Keep float32 products and convolutions in float32 within the block."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _compare(session: Session, store: Store, name: str, *settings: str) -> Facts:
    own = [*settings_for_comparison(name), *session.small_settings, "batch=4", *settings]
    recipe = load(name, (), common=own)
    torch.manual_seed(0)
    method = build_method(recipe)
    samples = _samples(recipe, store)
    here = _built(recipe, samples, "cpu")
    loss, gradient = _loss_and_gradient(method, here, "cpu")
    there = _built(recipe, samples, session.device.type)
    method.to(session.device)
    own_loss, own_gradient = _loss_and_gradient(method, there, session.device.type)
    low_loss, low_gradient = _loss_and_gradient(method, there, session.device.type, HALF[session.half])
    figures = {
        "views": _relative(there.views, here.views),
        "loss": abs(own_loss - loss) / abs(loss),
        "gradient": _relative(own_gradient, gradient),
        "half_loss": abs(low_loss - loss) / abs(loss),
        "half_gradient": _relative(low_gradient, gradient),
    }
    return {key: rounded(value, 2) for key, value in figures.items()}


def _samples(recipe: Recipe, store: Store) -> list[Sample]:
    every = np.arange(len(store))
    reader = SampleReader(
        store,
        every,
        every,
        view_sampling_config(recipe.views),
        recipe.batch,
        recipe.seed,
        sampler=requirements_of(recipe).sampler,
    )
    return [reader[k] for k in range(recipe.batch)]


def _built(recipe: Recipe, samples: list[Sample], device: str) -> Any:
    changes = recipe.views.photometric
    return build_views(samples, recipe.views.patch_size, changes, torch.device(device), recipe.seed)


def _loss_and_gradient(
    method: Method, batch: Any, device: str, half: torch.dtype | None = None
) -> tuple[float, Tensor]:
    """Return the loss of a step and all gradients as one vector, with autocast to `half`."""
    method.zero_grad(set_to_none=True)
    with torch.autocast(device, half, enabled=half is not None):
        loss = method(batch).loss
    loss.backward()
    gradients = [p.grad.flatten().float() for p in method.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(gradients)


def _relative(a: Tensor, b: Tensor) -> float:
    """Return ‖a − b‖ ÷ ‖b‖, in float64 on the CPU."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))
