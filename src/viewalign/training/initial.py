"""Starting a run from weights: read, matched with the method's student, copied to its teacher, told in a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.formats import fitting, hub_names, pretrained, weight_names
from viewalign.formats.nnssl import adaptation
from viewalign.formats.resolving import resolve_checkpoint
from viewalign.formats.token_order import Order
from viewalign.methods.base import Method
from viewalign.networks.backbone import Size
from viewalign.training import checkpoints
from viewalign.training.folder import RunFolder


def start_run(method: Method, recipe: Recipe, folder: RunFolder, say: Callable[[str], None], write: bool) -> None:
    """Do what a recipe's `init` asks for; nothing where it names no weights.

    Args:
        method: freshly built.
        recipe: the run's settings.
        folder: where `init.json` is written.
        say: takes the table.
        write: whether this process writes files.

    Raises:
        UserError: weights that cannot be read or do not fit.
    """
    settings = recipe.init
    if not settings.weights:
        return
    start = load_initial(method, settings.weights, recipe.views.size, settings.token_order, settings.min_share)
    say(start.text())
    if write:
        folder.initial.write_text(json.dumps(start.as_json(), indent=1))


def load_initial(
    method: Method,
    path: str | Path,
    size: Size,
    token_order: Literal["auto"] | Order = "auto",
    minimum_share: float = 0.9,
) -> fitting.Fitted:
    """Fill a method's student from given weights and start its teacher as a copy.

    Args:
        method: as built; it is changed in place, and not at all where weights are refused.
        path: a checkpoint of nnssl's layout, an export, or a run of this package.
        size: (D, H, W) of the run's views.
        token_order: of a Primus's weights; "auto" goes by the trainer that the file names.
        minimum_share: of the encoder's elements that must be covered.

    Raises:
        UserError: weights that cannot be read, of another kind of network, or that cover too little of the encoder.
    """
    target = weight_names.own_branch(dict(method.named_parameters()))
    family = weight_names.family_of(target)
    assert family is not None, "every backbone is of a known family"
    file, note = resolve_checkpoint(hub_names.resolve(path), family)
    source = read_source(file, None if token_order == "auto" else token_order)
    if note:
        source = replace(source, notes=(note, *source.notes))
    if source.family != family:
        raise UserError(
            f"{file} holds weights of a {pretrained.family_words(source.family)}, but this run trains a "
            f"{pretrained.family_words(family)}. Take weights of the same network, or set network= to theirs."
        )
    fitted = fitting.fit(target, source, size, minimum_share, "init.min_share")
    _fill(method, target, fitted.state)
    return fitted


def read_source(path: str | Path, order: Order | None = None) -> pretrained.Source:
    """Read weights from a run (its newest checkpoint that can be read), an export or a checkpoint of nnssl's layout.

    Args:
        path: a folder or file here, or `hf:OWNER/NAME` of the Hugging Face Hub.
        order: the token order of a Primus, where nothing tells it.

    Raises:
        UserError: weights that cannot be read.
    """
    file = hub_names.resolve(path)
    run = RunFolder(file)
    if not run.config.is_file():
        return pretrained.read_weights(file, order)
    state, complaints = checkpoints.load_newest(run.checkpoints)
    if state is None:
        raise UserError(" ".join([f"The run {file} has no checkpoint to start from.", *complaints]))
    settings = state["recipe"]
    branch = weight_names.own_branch(state["method"])
    trainer, size, network = f"viewalign_{settings['method']}", tuple(settings["views"]["size"]), settings["network"]
    plan = adaptation.plan_of(network["name"], network["channels"], size, settings["method"], state["preparation"])
    return pretrained.make_source(branch, file.name, size, trainer, order, plan)


@torch.no_grad()
def _fill(method: Method, target: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy weights into the student, and the student's into whatever the teacher has of the same name."""
    for name, value in state.items():
        target[name].copy_(value)
    everything = dict(method.named_parameters())
    for name, value in everything.items():
        twin = everything.get(f"student.{name.removeprefix('teacher.')}") if name.startswith("teacher.") else None
        if twin is not None:
            value.copy_(twin)
