"""Reading files of pretrained weights: of nnssl, LatentCampus, nnU-Net, the FOMO baseline, and this package's exports.

Files are read as tensors and plain values only; files that would run code when they are read are rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from viewalign.errors import UserError
from viewalign.weights import adaptation_plan, files, token_order
from viewalign.weights import names as weight_names
from viewalign.weights.names import Family

Size = tuple[int, int, int]

CHECKPOINT_FILE = "checkpoint_final.pth"
_EXPORT_FACTS, _EXPORT_WEIGHTS = "encoder.json", "encoder.safetensors"
_SUFFIXES = (".pth", ".safetensors", ".ckpt")
KNOWN_SCHEMES = ("ZScoreNormalization", "NoNormalization")
"""nnU-Net's normalisations that are supported here."""
_NAMED = 8
"""Largest number of files in a message."""
_FAMILY_WORDS: dict[Family, str] = {"resenc": "ResEnc (a U-Net)", "primus": "Primus (a transformer)"}


@dataclass(frozen=True)
class Source:
    """Pretrained weights.

    Attributes:
        state: tensors on the CPU by the names of `weight_names`, a Primus's in raster token order.
        family: of their network.
        file: the file's name, without its folder.
        size: (D, H, W) of the views of their training, if known.
        grid: the token grid of a Primus, if known.
        trainer_name: of the trainer that wrote them, if recorded.
        notes: sentences about assumptions and repairs.
        plan: nnssl's adaptation plan: architecture, voxel size and normalisation of the pretraining; empty if it is
            not in the file.
        citations: listed in the file, as in nnssl's checkpoints.
    """

    state: dict[str, Tensor] = field(repr=False)
    family: Family
    file: str
    size: Size | None = None
    grid: Size | None = None
    trainer_name: str = ""
    notes: tuple[str, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict, repr=False)
    citations: tuple[Mapping[str, Any], ...] = ()

    def cited(self) -> list[dict[str, Any]]:
        """Return citations: those in the file, otherwise those of its trainer."""
        return [dict(one) for one in self.citations] or adaptation_plan.citations_of(self.trainer_name)


def family_words(family: Family) -> str:
    """Return the name of a family of networks for messages."""
    return _FAMILY_WORDS[family]


def read_weights(path: str | Path, order: token_order.Order | None = None) -> Source:
    """Read a checkpoint of nnssl, LatentCampus, nnU-Net or the FOMO baseline, or an export of this package.

    Args:
        path: a `.pth`, `.ckpt` or `.safetensors` file, or a folder with `checkpoint_final.pth`, an export or a
            single file of weights.
        order: the token order of a Primus; by default that of the trainer's name, see `token_order`.

    Raises:
        UserError: no such file, a damaged file, a file that needs pickle, or an unknown network or token order.
    """
    file = _file_of(Path(path))
    if file.suffix == ".safetensors":
        state, facts = files.load_safetensors(file, _EXPORT_FACTS)
        plan = _plan_of_facts(facts)
        trainer = str(plan.get("trainer_name", "viewalign_" if facts else ""))
        return make_source(state, file.name, _triple(facts.get("size")), trainer, order, plan)
    root = files.load_checkpoint(file, files.harmless())
    plan = root.get("nnssl_adaptation_plan") or files.read_json(file.with_name("adaptation_plan.json"))
    plan = plan or adaptation_plan.plan_of_nnunet(root.get("init_args"))
    schemes = adaptation_plan.schemes_of(plan)
    trainer = str(root.get("trainer_name") or plan.get("trainer_name") or "")
    source = make_source(_weights_of(root, file), file.name, _plan_size(plan), trainer, order, plan)
    listed = root.get("citations")
    notes = [
        f"Its images were normalised by {scheme}, which is not known here; a z-score takes its place."
        for scheme in sorted(set(schemes) - set(KNOWN_SCHEMES))
        if adaptation_plan.PREPARATION not in plan
    ]
    citations = tuple(listed) if isinstance(listed, list | tuple) else ()
    return replace(source, citations=citations, notes=(*source.notes, *notes))


def make_source(
    state: Mapping[str, Tensor],
    file: str,
    size: Size | None = None,
    trainer_name: str = "",
    order: token_order.Order | None = None,
    plan: Mapping[str, Any] | None = None,
) -> Source:
    """Convert tensors to the names and the token order of this package.

    Raises:
        UserError: an unknown network, non-finite values, or an unknown token order.
    """
    weights = weight_names.clean(state)
    family = weight_names.family_of(weights)
    if family is None:
        some = ", ".join(list(weights)[:3]) or "none at all"
        raise UserError(f"{file} contains no weights of a ResEnc or a Primus; its first names are {some}.")
    files.check_finite(weights, file)
    source = Source(weights, family, file, size, trainer_name=trainer_name, plan=plan or {})
    return source if family == "resenc" else _order_tokens(source, order)


def _order_tokens(source: Source, requested: token_order.Order | None) -> Source:
    """Determine a Primus's token grid and order; convert weights that are not in raster order."""
    state, notes = source.state, []
    grid, note = _token_grid(source)
    notes += [note] if note else []
    if token_order.settle(source.trainer_name, requested, source.file) == "hdw":
        if grid is None:
            raise UserError(f"{source.file} does not state its token grid, which is needed to convert its token order.")
        state = token_order.repair(state, grid)
        notes.append(
            f"The tokens of {source.file} lay as (H, D, W); positions were transposed and rotary channels exchanged."
        )
        if grid[0] != grid[1]:
            notes.append("The first two sides of its token grid differ, for which the repair may not be exact.")
    return replace(source, state=state, grid=grid, notes=tuple(notes))


def _token_grid(source: Source) -> tuple[Size | None, str]:
    """Return the token grid from the view size, otherwise from the number of tokens if that is a cube."""
    table, stem = source.state.get("eva.pos_embed"), source.state.get(weight_names.STEM["primus"])
    if table is None or stem is None or table.ndim != 3 or stem.ndim != 5:
        raise UserError(f"{source.file} contains a Primus without its positions or its first convolution.")
    tokens, patch = table.shape[1], stem.shape[2:]
    if source.size is not None:
        grid = (source.size[0] // patch[0], source.size[1] // patch[1], source.size[2] // patch[2])
        if math.prod(grid) == tokens:
            return grid, ""
    side = round(tokens ** (1 / 3))
    problem = "does not state its view size" if source.size is None else "names a view size that does not fit it"
    if side**3 == tokens:
        return (side, side, side), f"{source.file} {problem}; its {tokens} tokens are taken for a cube."
    return None, f"{source.file} {problem}, and its {tokens} tokens are no cube's; its positions cannot be resized."


def _file_of(path: Path) -> Path:
    """Return the file to read; for an export the checkpoint, which contains the decoder too."""
    if path.is_file():
        return path
    for name in (CHECKPOINT_FILE, _EXPORT_WEIGHTS):
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        others = sorted(file for suffix in _SUFFIXES for file in path.rglob(f"*{suffix}"))
        if len(others) == 1:
            return others[0]
        if others:
            some = ", ".join(str(file.relative_to(path)) for file in others[:_NAMED])
            raise UserError(f"{path} contains {len(others)} files of weights; name one of them: {some}.")
        raise UserError(f"{path} contains no weights: no {CHECKPOINT_FILE}, no {_EXPORT_WEIGHTS}, and no run.")
    raise UserError(f"There are no weights at {path}: no run, export or checkpoint.")


def _weights_of(root: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """Return the state dict: `network_weights`, Lightning's `state_dict`, or the root if it contains only tensors."""
    weights = root.get("network_weights", root.get("state_dict", root))
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        keys = ", ".join(map(str, list(root)[:6]))
        raise UserError(f"{file} has no 'network_weights' of tensors; it contains {keys or 'nothing'}.")
    return weights


def _plan_of_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan for exported facts; an empty one if facts are missing or invalid."""
    size, network = _triple(facts.get("size")), facts.get("network")
    if size is None or not isinstance(network, Mapping):
        return {}
    method = str(facts.get("method", ""))
    try:
        return adaptation_plan.plan_of(
            str(network["name"]), int(network["channels"]), size, method, facts["preparation"]
        )
    except (KeyError, TypeError, ValueError):
        return {}


def _plan_size(plan: Mapping[str, Any]) -> Size | None:
    """Return the view size in an adaptation plan, or None."""
    pretrain = plan.get("pretrain_plan")
    configurations = pretrain.get("configurations") if isinstance(pretrain, Mapping) else None
    first = next(iter(configurations.values()), None) if isinstance(configurations, Mapping) else None
    inner = first.get("patch_size") if isinstance(first, Mapping) else None
    return _triple(plan.get("pretrain_patch_size") or inner)


def _triple(value: Any) -> Size | None:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in value):
        return None
    return int(value[0]), int(value[1]), int(value[2])
