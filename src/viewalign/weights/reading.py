"""Reading an encoder from any supported source, and determining its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viewalign.errors import UserError, report_os_errors
from viewalign.networks.registry import PRIMUS, RESENC, build_plain, unet_arguments
from viewalign.utils.shapes import Size
from viewalign.weights import adaptation_plan, remote, sources
from viewalign.weights import names as weight_names
from viewalign.weights.names import ENCODER, Family
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
    """Return the name of the network of some weights, by its parameters and, if the file has one, by its plan.

    The encoder must have the same vectors (biases and norms): fewer or more belong to other blocks, stages or norms.
    Strides and attention heads leave no trace in weights, so that they are compared with the plan.

    Raises:
        UserError: no network matches.
    """
    architectures: Mapping[str, Any] = RESENC if source.family == "resenc" else PRIMUS
    given = _vectors(source.state, source.family)
    for name in architectures:
        with torch.device("meta"):
            net = build_plain(name, size_of(name, source))
        if _vectors(dict(net.named_parameters()), source.family) == given:
            _check_plan(name, source)
            return name
    raise UserError(
        f"{source.file} contains an encoder of an unsupported network; supported are {', '.join(architectures)}."
    )


def _vectors(weights: Mapping[str, Tensor], family: Family) -> dict[str, int]:
    """Return the lengths of an encoder's vectors by name."""
    return {k: len(v) for k, v in weights.items() if k.startswith(ENCODER[family]) and v.ndim == 1}


def _check_plan(name: str, source: sources.Source) -> None:
    """Compare what the plan says about a network, and its weights do not, with the network of this name.

    Raises:
        UserError: they differ.
    """
    described = source.plan.get("architecture_plans")
    arguments = described.get("arch_kwargs") if isinstance(described, Mapping) else None
    if not isinstance(arguments, Mapping):
        return
    if source.family == "resenc":
        own = {key: unet_arguments(name)[key] for key in ("strides", "norm_op", "nonlin")}
    else:
        own = dict.fromkeys(("eva_numheads", "encoder_eva_numheads"), PRIMUS[name]["eva_numheads"])
    for key, wanted in own.items():
        if arguments.get(key) is not None and _plain(arguments[key]) != _plain(wanted):
            raise UserError(
                f"{source.file} contains a network like {name} with {key}={arguments[key]} instead of {wanted}, which "
                "is not supported here. `viewalign finetune segmentation` and `transfer_encoder` accept it."
            )


def _plain(value: Any) -> Any:
    """Return an argument in one form: classes by name, strides as three numbers."""
    if isinstance(value, str):
        return value.rpartition(".")[2]
    if isinstance(value, list | tuple):
        return [[one] * 3 if isinstance(one, int) else list(one) for one in value]
    return value


def size_of(name: str, source: sources.Source) -> Size:
    """Return the view size of the pretraining: for a Primus from its token grid, for a ResEnc 64³ if unknown."""
    if source.family == "resenc":
        return source.size or (64, 64, 64)
    d, h, w = (
        cells * side for cells, side in zip(source.grid or (8, 8, 8), PRIMUS[name]["patch_embed_size"], strict=True)
    )
    return d, h, w
