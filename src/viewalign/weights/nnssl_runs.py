"""Finding nnssl's run for a path that contains only a trainer's name, as in the published command lines."""

from __future__ import annotations

from pathlib import Path

import torch

from viewalign.errors import UserError
from viewalign.weights import names as weight_names
from viewalign.weights import sources
from viewalign.weights.names import Family

_RUNS = 6
"""Largest number of runs in a message."""


def resolve_checkpoint(path: str | Path, network: str) -> tuple[Path, str]:
    """Return the path of weights, and a message if it is not the requested one.

    A missing `MAETrainer/fold_all/checkpoint_final.pth`, as in the published command lines, means the run of that
    trainer, `MAETrainer__<plans>__<config>/fold_all/checkpoint_final.pth`, that trained the same kind of network. Its
    Primus twin, whose name has "Eva" in it (`MAEEvaTrainer`), counts as the same trainer.

    Args:
        path: the requested path.
        network: the network to fill, such as "resenc-l" or "primus-m", or its family alone.

    Raises:
        UserError: it does not exist, and no run or several runs match, or the match is of the other kind of network.
    """
    requested = Path(path)
    fold = requested.parent
    if requested.exists() or "__" in fold.parent.name or not fold.name.startswith("fold_"):
        return requested, ""
    runs = sorted(
        r for r in fold.parent.parent.glob(f"*__*/{fold.name}/{requested.name}") if _meant(r, fold.parent.name)
    )
    if not runs:
        return requested, ""
    family = _family(network)
    fitting = [run for run in runs if _family_in(run) == family]
    if len(fitting) != 1:
        names = ", ".join(run.parent.parent.name for run in (fitting or runs)[:_RUNS])
        why = "all of which match" if fitting else f"of which none is of a {sources.family_words(family)}"
        raise UserError(f"There is no {requested}, only {names}, {why}. Name the checkpoint in full.")
    return fitting[0], f"There is no {fold.parent.name}; {fitting[0].parent.parent.name} is used."


def _meant(run: Path, trainer: str) -> bool:
    """Return whether a run's folder `<trainer>__<plans>__<config>` is of a trainer or its twin."""
    return _twinless(run.parent.parent.name.split("__")[0]) == _twinless(trainer)


def _twinless(trainer: str) -> str:
    return trainer.replace("Eva", "")


def _family(network: str) -> Family:
    return "primus" if network.startswith("primus") else "resenc"


def _family_in(file: Path) -> Family | None:
    """Return the family of a checkpoint without reading its tensors; None if it is unknown."""
    try:
        root = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return weight_names.family_of(root.get("network_weights", root))
    except Exception:
        return None
