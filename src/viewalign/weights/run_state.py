"""The state of a run's newest checkpoint, and the networks in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from viewalign.config import Recipe
from viewalign.errors import DamageWarning, UserError
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import RunFolder

Weights = Literal["student", "teacher"]

_STATE = {"step": int, "method": dict, "recipe": dict, "preparation": dict}
"""Entries that a checkpoint needs for its encoder to be read."""


def run_state(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Return a run's recipe and the state of its newest checkpoint; damaged ones are skipped with a warning.

    Raises:
        UserError: no run, no checkpoint yet, or no usable one.
    """
    run = RunFolder(folder)
    recipe = run.recipe()
    damaged: list[str] = []
    state = checkpoints.load_newest(run.checkpoints, damaged.append)
    if state is None:
        reasons = " ".join(damaged) or "It has not reached its first checkpoint."
        raise UserError(f"The run {folder} has no checkpoint to read. {reasons}")
    missing = [key for key, kind in _STATE.items() if not isinstance(state.get(key), kind)]
    if missing:
        raise UserError(f"The checkpoint of step {state.get('step')} in {run.checkpoints} lacks {', '.join(missing)}.")
    if damaged:
        warnings.warn(" ".join(damaged), DamageWarning, stacklevel=2)
    return recipe, state


def branch_state(state: dict[str, Any], weights: Weights) -> dict[str, Tensor]:
    """Extract one network's backbone from a run's state.

    Raises:
        UserError: the run's method has no such network.
    """
    prefix = f"{weights}.backbone."
    if weights == "student" and not any(name.startswith(prefix) for name in state["method"]):
        prefix = "backbone."  # a method without a teacher has one network
    found = {name.removeprefix(prefix): value for name, value in state["method"].items() if name.startswith(prefix)}
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"This run has no {weights} weights.")
    return found
