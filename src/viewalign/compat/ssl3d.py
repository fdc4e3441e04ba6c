"""A run in the layout of the SSL3D challenge, and what the challenge's own loaders will ask of it.

They find a checkpoint by the folders of nnssl's results, read voxel size and patch from the plan inside it, and load
the encoder into a fresh ResEnc-L or Primus-M: strictly for segmentation, by the names that are there for
classification. What they would miss in silence is refused here. Facts: `documentation/Getting_started_OpenMind.md` of
nnssl, and the loaders of nnU-Net and SSL3D_classification.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import plans as nnunet
from viewalign.networks.registry import PRIMUS
from viewalign.weights import files
from viewalign.weights.encoder import Weights
from viewalign.weights.export import export_run
from viewalign.weights.run_folder import RunFolder

TRACKS = {"resenc-l": "ResEncL", "primus-m": "PrimusM"}
"""The challenge's two tracks, by our names of their networks."""
PATCH = (160, 160, 160)
"""Voxels that all of its fine-tuning takes."""
DATASET, CONFIGURATION = "Dataset745_OpenMind", "onemmiso"
_CHECKPOINT = "checkpoint_final.pth"
_PARTS = ("network_weights", "nnssl_adaptation_plan")
_FIELDS = (
    *("architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize"),
    *("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe"),
)


@dataclass(frozen=True)
class Submission:
    """What was written.

    Attributes:
        checkpoint: the file whose path the challenge's commands take.
        passed: each thing that was asked of it, in words.
    """

    checkpoint: Path
    passed: tuple[str, ...]


def write_submission(run: str | Path, out: str | Path | None = None, weights: Weights = "student") -> Submission:
    """Write a run's newest checkpoint as the challenge takes it, and check what was written.

    Args:
        run: the run's folder.
        out: where to; default is `ssl3d/` in the run's folder. Folders of nnssl's results lie in it.
        weights: student or teacher.

    Raises:
        UserError: the run is of neither track, its images were not of 1 mm and z-scored, or a check fails.
    """
    folder = RunFolder(Path(run))
    _check_track(folder.recipe())
    target = folder.root / "ssl3d" if out is None else Path(out)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty. Name another folder with -o, or move it away.")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".export-") as scratch:
        export = export_run(run, Path(scratch) / "export", weights)
        plan = files.read_json(export / "adaptation_plan.json")
        place = Path(scratch) / DATASET / f"{plan['trainer_name']}__nnsslPlans__{CONFIGURATION}"
        (place / "fold_all").mkdir(parents=True)
        (export / _CHECKPOINT).replace(place / "fold_all" / _CHECKPOINT)
        (export / "adaptation_plan.json").replace(place / "adaptation_plan.json")
        (place / "plans.json").write_text(json.dumps(plan["pretrain_plan"], indent=4))
        passed = check(place / "fold_all" / _CHECKPOINT)
        place.parent.replace(target / DATASET)
    return Submission(target / DATASET / place.name / "fold_all" / _CHECKPOINT, passed)


def _check_track(recipe: Recipe) -> None:
    """Refuse early what a check of the finished file would refuse after minutes."""
    if recipe.network.name not in TRACKS:
        raise UserError(
            f"SSL3D has two tracks, {' and '.join(TRACKS)}; this run trained {recipe.network.name}. Its weights go "
            "elsewhere by `viewalign export` with another format."
        )


def check(checkpoint: Path) -> tuple[str, ...]:
    """Ask of a checkpoint what the challenge's loaders ask.

    Args:
        checkpoint: `…/TRAINER__PLANS__CONFIGURATION/fold_all/checkpoint_final.pth`.

    Returns:
        What holds, in words.

    Raises:
        UserError: everything that does not hold, or a file that cannot be read.
    """
    asked = ask(files.load_checkpoint(checkpoint), checkpoint.parent.parent.name)
    wrong = [told for found in asked.values() for told in found]
    if wrong:
        raise UserError(f"{checkpoint} would not pass: {'; '.join(wrong)}.")
    return tuple(asked)


def ask(root: Mapping[str, Any], folder: str) -> dict[str, list[str]]:
    """Return for each thing that is asked, in words, what does not hold.

    Args:
        root: a checkpoint's content.
        folder: the name `TRAINER__PLANS__CONFIGURATION` of the folder that it lies in.
    """
    asked = {"a checkpoint with weights and plan": [name for name in _PARTS if not isinstance(root.get(name), dict)]}
    if any(asked.values()):
        return asked
    plan, weights = root["nnssl_adaptation_plan"], root["network_weights"]
    asked["every field of the plan that is read"] = [name for name in _FIELDS if name not in plan]
    if any(asked.values()):
        return asked
    asked["every weight is finite"] = _not_finite(weights)
    asked[f"plan and folder say {CONFIGURATION}: 1 mm, z-scores, one channel"] = _other_plan(plan, folder)
    asked["a network of the challenge"] = _other_network(plan)
    if not any(asked.values()):
        fresh = _fresh(plan)
        asked["segmentation: stem and encoder load strictly at 160³"] = list(_not_strict(plan, weights, fresh))
        asked["classification: finds every weight of the encoder"] = list(_not_found(plan, weights, fresh))
    return asked


def _not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} is not finite" for name, value in weights.items() if not torch.isfinite(value).all()][:3]


def _other_plan(plan: Mapping[str, Any], folder: str) -> list[str]:
    """Classification takes its patch from the configuration that the folder is named by."""
    configurations = plan["pretrain_plan"]["configurations"]
    named = folder.split("__")[-1]
    if list(configurations) != [CONFIGURATION] or named != CONFIGURATION:
        return [
            f"images are of {', '.join(configurations)} and the folder says {named}, where both say {CONFIGURATION}"
        ]
    how = configurations[CONFIGURATION]
    schemes, channels = how["normalization_schemes"], plan["pretrain_num_input_channels"]
    return [
        *([] if how["spacing"] == [1, 1, 1] else [f"voxels are of {how['spacing']} mm"]),
        *([] if schemes == ["ZScoreNormalization"] else [f"images are normalised by {', '.join(schemes)}"]),
        *([] if channels == 1 else [f"{channels} image channels, where all of the challenge's images have one"]),
    ]


def _other_network(plan: Mapping[str, Any]) -> list[str]:
    name = plan["architecture_plans"]["arch_class_name"]
    return [] if name in TRACKS.values() else [f"the network is {name}"]


def _fresh(plan: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Return names and shapes of the weights of a network as fine-tuning builds it; nothing is allocated."""
    architecture = nnunet.architecture_of(plan, "the plan")
    with torch.device("meta"):
        network = nnunet.build_network(architecture, 1, 2, PATCH)
    return {name: value.shape for name, value in network.state_dict().items()}


def _not_strict(
    plan: Mapping[str, Any], weights: Mapping[str, Tensor], fresh: Mapping[str, torch.Size]
) -> Iterator[str]:
    """Whatever begins with a key goes in, with names and shapes equal; a table of positions is resized by its patch."""
    for key in (plan["key_to_stem"], plan["key_to_encoder"]):
        given = {name: value.shape for name, value in weights.items() if name.startswith(key)}
        wanted = {name: shape for name, shape in fresh.items() if name.startswith(f"{key}.")}
        yield from (f"{name} is missing" for name in sorted(wanted.keys() - given.keys())[:3])
        yield from (f"{name} is one too many" for name in sorted(given.keys() - wanted.keys())[:3])
        for name in sorted(wanted.keys() & given.keys()):
            shape = _positions(plan, wanted[name]) if name == plan["key_to_lpe"] else wanted[name]
            if given[name] != shape:
                yield f"{name} is {tuple(given[name])}, where {tuple(shape)} is wanted"
    yield from (f"{key}.weight is missing" for key in plan["keys_to_in_proj"] if f"{key}.weight" not in weights)


def _positions(plan: Mapping[str, Any], shape: torch.Size) -> torch.Size:
    """Return the shape of the table of positions for the patch that the plan tells."""
    patch = plan["pretrain_plan"]["configurations"][CONFIGURATION]["patch_size"]
    token = PRIMUS["primus-m"]["patch_embed_size"]
    tokens = 1
    for side, step in zip(patch, token, strict=True):
        tokens *= side // step
    return torch.Size((shape[0], tokens, shape[2]))


def _not_found(
    plan: Mapping[str, Any], weights: Mapping[str, Tensor], fresh: Mapping[str, torch.Size]
) -> Iterator[str]:
    """Classification cuts "encoder." out of a Primus's names, takes what it finds, and says nothing of the rest."""
    is_primus = plan["key_to_lpe"] is not None
    given = {name.replace("encoder.", "") if is_primus else name for name in weights}
    parts = (f"{plan['key_to_stem']}.", f"{plan['key_to_encoder']}.")
    yield from (
        f"classification would not find {name}" for name in fresh if name.startswith(parts) and name not in given
    )
