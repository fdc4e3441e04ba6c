"""Looks through a trained model of nnU-Net before nnU-Net opens it: its own reader would run what a file holds.

nnU-Net unpickles checkpoints, and imports and calls whatever name a plan gives for a network and its layers. Here both
are read as data first, and what is more than tensors, plain values and layers of torch is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.errors import UserError
from viewalign.formats import files

CHECKPOINT = "checkpoint_final.pth"
_LAYER = re.compile(r"torch\.nn\.(modules\.(conv|instancenorm|batchnorm|dropout|activation)\.)?[A-Z]\w*[a-z0-9]\w*")
_NETWORK = re.compile(r"dynamic_network_architectures\.architectures\.[a-z_]+\.[A-Z]\w+")


def harmless() -> list[Any]:
    """Return what nnU-Net's checkpoints hold besides tensors: NumPy's scalars, which only hold values."""
    from numpy._core.multiarray import scalar

    return [scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64"))]


def check_model(folder: Path, folds: Sequence[int | str]) -> None:
    """Refuse a model that could make nnU-Net run code of the one who made it.

    Args:
        folder: `TRAINER__PLANS__CONFIGURATION`, with `plans.json` and `fold_*`.
        folds: those that will be used.

    Raises:
        UserError: a checkpoint that holds pickled objects, or a plan that names something else than a network of
            dynamic-network-architectures and layers of torch.
    """
    plans = folder / "plans.json"
    check_plan(files.read_json(plans), plans)
    for fold in folds:
        files.load_checkpoint(folder / f"fold_{fold}" / CHECKPOINT, harmless())


def check_plan(plan: Mapping[str, Any], file: Path) -> None:
    """Refuse a plan that names code of others.

    Raises:
        UserError: it does.
    """
    configurations = plan.get("configurations")
    for configuration in configurations.values() if isinstance(configurations, Mapping) else ():
        architecture = configuration.get("architecture") if isinstance(configuration, Mapping) else None
        if isinstance(architecture, Mapping):
            _check_architecture(architecture, file)


def _check_architecture(architecture: Mapping[str, Any], file: Path) -> None:
    arguments = architecture.get("arch_kwargs") or {}
    named = [(_NETWORK, architecture.get("network_class_name"))]
    named += [(_LAYER, arguments.get(key)) for key in architecture.get("_kw_requires_import") or ()]
    for allowed, name in named:
        if name is not None and not allowed.fullmatch(str(name)):
            raise UserError(
                f"{file} is refused: it makes nnU-Net import {name}, which is no network of "
                "dynamic-network-architectures and no layer of torch, and could run code."
            )
