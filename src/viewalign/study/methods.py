"""The study that compares methods: same network, data, steps and seeds, and the network untrained beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from viewalign.errors import UserError
from viewalign.given import put, read_override
from viewalign.recipes import loading as recipes
from viewalign.study.loading import check
from viewalign.study.settings import Study

UNTRAINED = "untrained"


def methods_for(network: str) -> list[str]:
    """Return the methods that have a recipe for a network, such as `resenc-xs`, sorted."""
    ending = f"-{network}"
    plain = [name.removesuffix(ending) for name in recipes.names() if name.endswith(ending)]
    return sorted(name for name in plain if "-" not in name)


def tuning_judges(network: str, shots: Sequence[int], changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return judges `tuned-N` that fine-tune on N cases by nnU-Net, briefly and alike for all arms.

    Args:
        network: the second half of recipe names.
        shots: a judge for each.
        changes: `key=value` of a fine-tuning, laid over 20 epochs of 25 steps of AdamW without mirroring.
    """
    rate = 3e-4 if network.startswith("primus") else 1e-3
    settings: dict[str, Any] = {"epochs": 20, "iterations": 25, "validation_iterations": 1, "optimizer": "adamw"}
    settings |= {"lr": rate, "mirror": False, "mirror_validation": False}
    tree = {"settings": settings}
    for change in changes:
        put(tree, *read_override(f"settings.{change}"))
    return {f"tuned-{count}": {"kind": "segmentation", "shots": count, "settings": tree["settings"]} for count in shots}


def comparison(
    network: str, data: Mapping[str, Any], methods: Sequence[str] = (), common: Sequence[str] = (), **settings: Any
) -> Study:
    """Build the study; every method's own recipe rules over all that `settings` leave open.

    Args:
        network: the second half of recipe names, such as `resenc-xs`.
        data: as `data` in a study file.
        methods: the first halves; none for all that have a recipe for the network.
        common: `key=value` of a recipe, for all of them.
        **settings: further keys of a study file: steps, seeds, threads …

    Raises:
        UserError: no such network or method, or settings that do not fit.
    """
    known = methods_for(network)
    if not known:
        ends = sorted(n.removeprefix("mae-") for n in recipes.names() if n.startswith("mae-") and n.count("-") == 2)
        raise UserError(f"No method has a recipe for the network '{network}'. Networks are {', '.join(ends)}.")
    for name in methods:
        if name not in known:
            raise UserError(f"There is no recipe {name}-{network}. Methods for {network} are {', '.join(known)}.")
    chosen = list(methods) or known
    arms: dict[str, Any] = {UNTRAINED: {"recipe": f"{chosen[0]}-{network}", "untrained": True}}
    arms |= {name: {"recipe": f"{name}-{network}"} for name in chosen}
    tree: dict[str, Any] = {
        "name": f"methods-{network}",
        "data": dict(data),
        "arms": arms,
        "judges": {"voxels": {"kind": "voxel_probe"}, "places": {"kind": "retrieval"}},
        "reference": "mae" if "mae" in chosen else chosen[0],
        **settings,
    }
    for setting in common:
        put(tree, *read_override(f"common.{setting}"))
    return check(tree, "compare-methods")
