"""One spelling for weights: dynamic-network-architectures' names, each tensor once.

A ResEnc has `encoder.*` and `decoder.*`; a Primus `eva.*`, `down_projection.*`, `up_projection.*` and, of pretraining,
`decoder.*`, `feature_decoder.*`, `attention_pool.*` and `filler`, the token that replaces a dropped one. Both may
have `projector.*` and `predictor.*`. These are the names in this package's networks, without
the prefix of the enclosing module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from torch import Tensor

Family = Literal["resenc", "primus"]
T = TypeVar("T")

ENCODER: dict[Family, tuple[str, ...]] = {"resenc": ("encoder.",), "primus": ("eva.", "down_projection.")}
"""Prefixes of the weights of an encoder."""
STEM: dict[Family, str] = {"resenc": "encoder.stem.convs.0.conv.weight", "primus": "down_projection.proj.weight"}
"""The first convolution."""

_HEADS = ("projector", "predictor")


def family_of(names: Iterable[str]) -> Family | None:
    """Return the family of networks that has weights of these names, wrapped or not; None if unknown."""
    known = [_unwrapped(name) for name in names]
    if any(name.startswith(ENCODER["primus"]) for name in known):
        return "primus"
    return "resenc" if any(name.startswith(("encoder.stem.", "encoder.stages.")) for name in known) else None


def own_branch(state: Mapping[str, T]) -> dict[str, T]:
    """Extract the student from a method's state, or the network of a method without a teacher."""
    mine = [name for name in state if not name.startswith("teacher.")]
    branch = next((name[: name.index("backbone.")] for name in mine if "backbone." in name), "")
    cut = {name.removeprefix(branch): state[name] for name in mine if name.startswith(branch)}
    return {name.removeprefix("backbone.").removeprefix("net."): value for name, value in cut.items()}


def clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under one name each.

    Prefixes of wrappers are removed; the aliases in a ResEnc's checkpoint (`all_modules.N`, `decoder.encoder.*`) are
    used only if the main name is missing; nnssl's mask token and LatentCampus' heads get this package's names.
    """
    bare = {_unwrapped(name): value for name, value in state.items()}
    bare = {name: value for name, value in bare.items() if not name.endswith("num_batches_tracked")}
    plain = {name: value for name, value in bare.items() if _without_alias(name) == name}
    for name, value in bare.items():
        plain.setdefault(_without_alias(name), value)
    if family_of(plain) == "primus":
        _take_mask_token(plain)
    return {name: value for part in _split_heads(plain) for name, value in part.items()}


def _unwrapped(name: str) -> str:
    """Remove the prefixes of DataParallel, torch.compile and Lightning, and nnssl's `encoder.` of a Primus.

    A stem or a norm under the names of gardening_tools, the library of the FOMO baseline, gets its usual name.
    """
    name = name.replace("_orig_mod.", "")
    while name.startswith(("module.", "model.")):
        name = name.removeprefix("module.").removeprefix("model.")
    name = name.replace("encoder.stem.conv1.", "encoder.stem.convs.0.").replace(".norm_op.", ".norm.")
    short = name.removeprefix("encoder.")
    return short if short.startswith(ENCODER["primus"]) else name


def _without_alias(name: str) -> str:
    """Return the first name of a tensor that dynamic-network-architectures registers several times."""
    if name.startswith("decoder.encoder."):
        name = name.removeprefix("decoder.")
    # Without dropout the modules are convolution, norm, activation; with dropout the norm is the third.
    return re.sub(r"\.all_modules\.(\d)\.", lambda found: ".conv." if found[1] == "0" else ".norm.", name)


def _take_mask_token(weights: dict[str, Tensor]) -> None:
    """Rename nnssl's mask token; a plain Primus has an unused buffer of zeros under that name."""
    token = weights.pop("mask_token", None)
    if token is not None and "filler" not in weights and token.any():
        weights["filler"] = token.flatten()


def _split_heads(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    heads = [{n: v for n, v in weights.items() if n.startswith(f"{head}.")} for head in _HEADS]
    rest = {n: v for n, v in weights.items() if not n.startswith(tuple(f"{head}." for head in _HEADS))}
    return [rest, *(_head(name, head) for name, head in zip(_HEADS, heads, strict=True))]


def _head(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a head that is a plain sequence of linear layers and norms; anything else keeps its names.

    Running averages of a norm keep theirs too: the heads of this package have none.
    """
    if any(key.startswith((f"{name}.layers.", f"{name}.norms.")) for key in weights):
        return weights
    modules = sorted({key.rsplit(".", 1)[0] for key in weights}, key=_natural)
    places: dict[str, str] = {}
    linears = 0
    for module in modules:
        weight = weights.get(f"{module}.weight")
        if weight is not None and weight.ndim == 2:
            places[module], linears = f"{name}.layers.{linears}", linears + 1
        elif weight is not None and weight.ndim == 1 and linears:
            places[module] = f"{name}.norms.{linears - 1}"
    return {_placed(key, places): value for key, value in weights.items()}


def _placed(key: str, places: Mapping[str, str]) -> str:
    module, leaf = key.rsplit(".", 1)
    return f"{places[module]}.{leaf}" if module in places and leaf in ("weight", "bias") else key


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
