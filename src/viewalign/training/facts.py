"""Facts about a run's data, network and device: for the log's first row, the page, and the summary at the start."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import viewalign
from viewalign.config import Recipe
from viewalign.data.store import Store
from viewalign.training import data
from viewalign.training.launch import Fabric
from viewalign.utils.text import counted, short_count
from viewalign.weights.run_folder import RunFolder

_log = logging.getLogger(__name__)


def data_facts(
    recipe: Recipe, store: Store, subjects: NDArray[np.int64], split: data.Split, method: torch.nn.Module
) -> dict[str, Any]:
    """Return facts about the run's data, network and software."""
    return {
        "volumes": len(store),
        "subjects": len(np.unique(subjects)),
        "train_volumes": len(split.train),
        "validation_volumes": len(split.validation),
        "smaller_than_view": data.count_small(store, np.arange(len(store)), recipe.views.patch_size),
        "parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "versions": {
            "viewalign": viewalign.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def device_name(fabric: Fabric) -> str:
    """Return the name of the device, and the number of processes if there are several."""
    name = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type.upper()
    return name if fabric.world_size == 1 else f"{fabric.world_size} × {name}"


def announce(recipe: Recipe, facts: Mapping[str, Any], device: torch.device, folder: RunFolder) -> None:
    """Log a summary of the run: method, network, device, data and folder; warn of few and of small volumes."""
    processes = recipe.runtime.gpus * recipe.runtime.nodes
    _log.info(
        "%s, %s: %s trained parameters, %s on %s%s",
        *(recipe.method, recipe.network.name, short_count(facts["parameters"])),
        *(recipe.runtime.precision, device, f" in {processes} processes" if processes > 1 else ""),
    )
    held_out = f", {facts['validation_volumes']:,} held out" if facts["validation_volumes"] else ""
    volumes = counted(facts["train_volumes"], "training volume")
    _log.info(
        "%s%s, %s; %s of batch %d in %s",
        *(volumes, held_out, counted(facts["subjects"], "subject"), counted(recipe.steps, "step")),
        *(recipe.batch, folder.root),
    )
    if recipe.batch > facts["train_volumes"]:
        _log.warning("batch=%d is more than the number of training volumes (%d).", recipe.batch, facts["train_volumes"])
    small, size = facts["smaller_than_view"], list(recipe.views.patch_size)
    if 2 * small > facts["volumes"]:
        of_all = f"{small:,} of {counted(facts['volumes'], 'volume')}"
        _log.warning("Smaller than views.patch_size=%s, and therefore padded: %s.", size, of_all)
    if recipe.optim.warmup_steps > recipe.steps:  # allowed, because short trials keep their recipe's warm-up
        _log.warning(
            "optim.warmup_steps=%d is longer than the run (steps=%d): the learning rate never reaches optim.lr.",
            recipe.optim.warmup_steps,
            recipe.steps,
        )
