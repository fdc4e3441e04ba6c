"""Short runs of small networks on synthetic volumes, to compare devices and resumed runs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np

from viewalign.config import Recipe
from viewalign.recipes.loading import load
from viewalign.training.run import pretrain
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import read_log

STEPS = 6
REPRODUCIBLE = ("runtime.precision=fp32", "views.photometric.p_noise=0")
"""Settings with which runs on a GPU and on a CPU agree: noise depends on the device's generator."""


def settings_for_comparison(recipe: str) -> list[str]:
    """Return the settings with which a recipe gives the same losses on every device."""
    return [*REPRODUCIBLE, *(["network.drop_path=0"] if "primus" in recipe else [])]


def small_recipe(recipe: str, store: Path, out: Path, device: str, settings: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a small run.

    Args:
        recipe: name of a recipe of an xs network.
        store: a store of volumes of at least 32³.
        out: the run's folder.
        device: cuda or cpu.
        settings: further overrides.
    """
    half = STEPS // 2
    own = [
        f"steps={STEPS}", "batch=4", "log.every=1", f"log.health_every={half}", f"checkpoint.every={half}",
        "validate.every=0", "log.tensorboard=false", "runtime.workers=1", f"runtime.device={device}",
        f"data={store}", f"out={out}",
    ]  # fmt: skip
    return load(recipe, [*own, *settings])


def small_run(
    recipe: str, store: Path, out: Path, device: str, settings: Sequence[str] = (), *, resume: bool = False
) -> list[float]:
    """Pretrain a small network for some steps and return the loss of each.

    Args:
        recipe, store, out, device, settings: as for `small_recipe`.
        resume: whether to resume from the newest checkpoint in `out`.
    """
    made = small_recipe(recipe, store, out, device, settings)
    with redirect_stderr(io.StringIO()):  # hides the progress
        pretrain(made, resume="auto" if resume else False)
    return [row["loss"] for row in read_log(out / "log.jsonl") if row["kind"] == "train"]


def resumed(recipe: str, store: Path, out: Path, device: str, settings: Sequence[str] = ()) -> list[float]:
    """Remove the last checkpoint of a finished small run, resume it, and return its losses.

    Args:
        recipe, store, out, device, settings: those of `small_run`.
    """
    shutil.rmtree(checkpoints.path_of(out / "checkpoints", STEPS))
    return small_run(recipe, store, out, device, settings, resume=True)


def difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest relative difference of two loss curves of the same length; NaN where a loss is NaN."""
    a, b = np.array(losses), np.array(reference)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"The runs have {len(losses)} and {len(reference)} losses, which cannot be compared.")
    return float(np.max(np.abs(a - b) / np.abs(b)))
