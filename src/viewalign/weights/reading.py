"""Reading an encoder from any supported source, and determining its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from viewalign.errors import UserError, report_os_errors
from viewalign.networks.registry import PRIMUS, RESENC, build_plain
from viewalign.utils.shapes import Size
from viewalign.weights import adaptation_plan, remote, sources
from viewalign.weights import names as weight_names
from viewalign.weights.names import ENCODER
from viewalign.weights.published import ENCODERS, PublishedEncoder
from viewalign.weights.run_folder import RunFolder
from viewalign.weights.run_state import run_state
from viewalign.weights.token_order import Order


@report_os_errors()
def read_source(path: str | Path, order: Order | None = None) -> sources.Source:
    """Read the weights that a user names; all commands and `load_encoder` use this function.

    Args:
        path: a run's folder (its newest checkpoint that can be read), an export, a checkpoint of nnssl, LatentCampus,
            nnU-Net or the FOMO baseline or a folder with one, and everything that `remote.locate` accepts.
        order: of the tokens of a Primus of nnssl whose trainer is unknown; see `weights.token_order`.

    Raises:
        UserError: no such file, damaged, needs pickle, or no weights of a ResEnc or a Primus.
    """
    return read_located(path, remote.locate(path), order)


def read_located(name: str | Path, file: Path, order: Order | None = None) -> sources.Source:
    """Read the weights at `file`, where `remote.locate` found what a user names; see `read_source`.

    Locating a public encoder again would compute the checksum of its file again.
    """
    entry = ENCODERS.get(str(name))
    run = RunFolder(file)
    if not run.config.is_file():
        source = sources.read_weights(file, order or (entry.order if entry else None))
        return source if entry is None or source.plan else _with_plan(source, entry)
    _, state = run_state(file)
    settings = state["recipe"]
    branch = weight_names.own_branch(state["method"])
    trainer, size, network = (
        f"viewalign_{settings['method']}",
        tuple(settings["views"]["patch_size"]),
        settings["network"],
    )
    plan = adaptation_plan.plan_of(network["name"], network["channels"], size, settings["method"], state["preparation"])
    source = sources.make_source(branch, file.name, size, trainer, order, plan)
    return replace(source, notes=(f"The weights are those of step {state['step']}.", *source.notes))


def _with_plan(source: sources.Source, entry: PublishedEncoder) -> sources.Source:
    """Add facts about a public encoder that are not in its file."""
    size = source.size or entry.size
    if size is None or not entry.network:
        return source
    channels = source.state[weight_names.STEM[source.family]].shape[1]
    plan = adaptation_plan.adaptation_plan(entry.network, channels, size, entry.spacing, False, source.trainer_name)
    return replace(source, plan=plan, size=size)


def network_of(source: sources.Source) -> str:
    """Return the name of the network of some weights, by the names and shapes of its parameters.

    Raises:
        UserError: no network matches.
    """
    architectures: Mapping[str, Any] = RESENC if source.family == "resenc" else PRIMUS
    starts = ENCODER[source.family]
    for name in architectures:
        with torch.device("meta"):
            net = build_plain(name, size_of(name, source))
        wanted = {k: v.shape for k, v in net.named_parameters() if k.startswith(starts) and v.ndim == 1}
        if all(k in source.state and source.state[k].shape == shape for k, shape in wanted.items()) and wanted:
            return name
    raise UserError(
        f"{source.file} contains an encoder of an unsupported network; supported are {', '.join(architectures)}."
    )


def size_of(name: str, source: sources.Source) -> Size:
    """Return the view size of the pretraining: for a Primus from its token grid, for a ResEnc 64³ if unknown."""
    if source.family == "resenc":
        return source.size or (64, 64, 64)
    d, h, w = (
        cells * side for cells, side in zip(source.grid or (8, 8, 8), PRIMUS[name]["patch_embed_size"], strict=True)
    )
    return d, h, w
