"""Load a study by name or file, with overrides."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from viewalign.errors import UserError
from viewalign.methods.registry import METHODS
from viewalign.recipes.files import RECIPES, STUDIES
from viewalign.studies import settings as models
from viewalign.studies.settings import Study
from viewalign.utils.overrides import closest, format_validation_error, iter_nested
from viewalign.utils.settings import Settings, merged, with_home

_MODELS = [one for one in vars(models).values() if isinstance(one, type) and issubclass(one, Settings)]
_KINDS = {"voxel_probe", "retrieval", "feature_probe", "segmentation", "finetune"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def load(name_or_path: str, settings: Mapping[str, Any] | None = None) -> Study:
    """Read a study, apply nested settings and validate it, without reading its data.

    Paths in a file are relative to `data.root`, which is relative to the file's folder.

    Raises:
        UserError: an unknown study or key (with a suggestion), or an invalid value.
    """
    (tree, own), settings = _read(name_or_path), settings or {}
    study = check(merged(tree, settings), name_or_path)
    _check_tuning(study, merged(own, settings), name_or_path)
    return study


def check(tree: Mapping[str, Any], source: str) -> Study:
    """Validate plain values as a `Study`; arms and evaluations that are null are removed."""
    tree = dict(tree)
    for group in ("arms", "evaluations"):
        if isinstance(tree.get(group), dict):
            tree[group] = {name: value for name, value in tree[group].items() if value is not None}
    try:
        study = Study.model_validate(tree)
    except ValidationError as problem:
        raise UserError(f"{source}: " + format_validation_error(problem, _suggest, tags=_KINDS)) from None
    for word in (study.name, *study.arms, *study.evaluations):
        if not _NAME.fullmatch(word):
            raise UserError(f"{source}: '{word}' is used as a folder name; use letters, digits, -, _, + and dots.")
    _check_names(study, source)
    _check_own(study, source)
    return study


def flatten(tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield nested settings as `key.key=value` overrides."""
    for key, value in iter_nested(tree, lambda group: group.rsplit(".", 1)[-1] == "weights"):
        yield f"{key}={json.dumps(value, ensure_ascii=False)}"


_OWN = {"data": "data", "out": "-o", "seed": "seeds"}
"""Settings of recipes that each cell has from the study, and the study's names of them."""
_OWN_OF_ALL = {f"runtime.{key}": key for key in ("precision", "threads", "device")}


def _check_own(study: Study, source: str) -> None:
    """Check that no setting of recipes is one that the study overrides."""
    arms = [(f"arms.{name}.settings", arm.settings, _OWN) for name, arm in study.arms.items()]
    steps = {"steps": "steps"} if study.steps else {}
    for where, tree, own in (("common", study.common, _OWN | _OWN_OF_ALL | steps), *arms):
        for key, _ in iter_nested(tree):
            if key in own:
                raise UserError(f"{source}: {where}.{key} has no effect in a study; set {own[key]} of the study.")


def _check_tuning(study: Study, given: Mapping[str, Any], source: str) -> None:
    """Check that some evaluation uses the settings of fine-tunings that a user has given."""
    kinds, unused = {one.kind for one in study.evaluations.values()}, []
    if not kinds & {"segmentation", "finetune"}:
        arms = {name: arm or {} for name, arm in given.get("arms", {}).items()}
        unused = [f"arms.{name}.finetune" for name, arm in arms.items() if arm.get("finetune")]
    if given.get("segmentation") and "segmentation" not in kinds:
        unused.append("segmentation")
    for key in unused:
        kind = "segmentation" if key == "segmentation" else "segmentation or finetune"
        raise UserError(f"{source}: no evaluation of kind {kind} uses {key}; add one, or set {key}=null.")


def _check_names(study: Study, source: str) -> None:
    if study.against not in study.arms:
        raise UserError(
            f"{source}: reference: there is no arm '{study.reference}'{closest(study.against, study.arms)}."
        )
    if len(set(study.seeds)) != len(study.seeds) or not study.seeds:
        raise UserError(f"{source}: seeds must be different numbers, at least one.")
    for name, arm in study.arms.items():
        chain, start = [name], arm.start
        while start is not None:
            if start not in study.arms:
                raise UserError(f"{source}: arms.{name}.start: there is no arm '{start}'{closest(start, study.arms)}.")
            if start in chain:
                raise UserError(
                    f"{source}: the arms {', '.join(chain)} start from each other in a circle (no arm is the first)."
                )
            if study.arms[start].untrained:
                raise UserError(f"{source}: arms.{name}.start: the arm '{start}' is not trained; leave `start` out.")
            chain.append(start)
            start = study.arms[start].start
    kinds = ("voxel_probe", "retrieval", "segmentation")
    missing = [name for name, settings in study.evaluations.items() if settings.kind in kinds]
    if missing and study.data.labelled is None:
        raise UserError(f"{source}: evaluations.{missing[0]} needs labelled images: name them in data.labelled.")


def _read(name_or_path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a study and its bases; return its settings, and those among them from the user's files.

    `data.root` and recipes of a user's file are relative to that file.
    """
    study: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for tree, file in STUDIES.read(name_or_path, Study):
        study, own = merged(study, tree), merged(own, tree) if file else {}
        data = study.get("data")
        if file is not None and isinstance(data, dict):
            study["data"] = {**data, "root": str(file.parent.absolute() / with_home(str(data.get("root") or "")))}
    return study, own


def _suggest(key: str) -> str:
    return closest(key, sorted({field for model in _MODELS for field in model.model_fields}))


UNTRAINED = "untrained"


def methods_for(network: str) -> list[str]:
    """Return the methods that have a recipe for a network, such as `resenc-xs`, sorted."""
    ending = f"-{network}"
    plain = [name.removesuffix(ending) for name in RECIPES.names() if name.endswith(ending)]
    return sorted(name for name in plain if name in METHODS)  # without variants such as mae-cva


def finetuning_evaluations(
    network: str, shots: Sequence[int | None], changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return evaluations `tuned-N` by short fine-tunings with nnU-Net on N cases, and `tuned-all`.

    Args:
        network: network part of recipe names.
        shots: numbers of cases, one evaluation for each; None for all.
        changes: settings of the fine-tuning; default 20 epochs of 25 steps of AdamW without mirroring.
    """
    rate = 3e-4 if network.startswith("primus") else 3e-3  # docs/results/organs.md: 1e-3 is too low for 200 steps
    settings: dict[str, Any] = {"epochs": 20, "iterations": 25, "validation_iterations": 1, "optimizer": "adamw"}
    settings |= {"lr": rate, "mirror": False, "tta": False}
    settings = merged(settings, changes or {})
    tuned = {"kind": "segmentation", "settings": settings}
    return {f"tuned-{count or 'all'}": {**tuned, "shots": count} for count in shots}


def comparison(
    network: str,
    data: Mapping[str, Any],
    methods: Sequence[str] = (),
    common: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Study:
    """Build a study that compares methods, each with its own recipe.

    Args:
        network: network part of recipe names, such as `resenc-xs`.
        data: as `data` in a study file.
        methods: method part of recipe names; default all that have a recipe for the network.
        common: settings of all recipes.
        **settings: further keys of a study file, such as steps, seeds and threads.

    Raises:
        UserError: an unknown network or method, or invalid settings.
    """
    known = methods_for(network)
    if not known:
        ends = sorted(n.removeprefix("mae-") for n in RECIPES.names() if n.startswith("mae-") and n.count("-") == 2)
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
        "evaluations": {"voxels": {"kind": "voxel_probe"}, "places": {"kind": "retrieval"}},
        "reference": "mae" if "mae" in chosen else chosen[0],
        "common": dict(common or {}),
        **settings,
    }
    return check(tree, "compare-methods")
