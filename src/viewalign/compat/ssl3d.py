"""Export a run for the SSL3D challenge, and check what the challenge's loaders require.

They find a checkpoint by the folders of nnssl's results, read voxel size and patch from the plan inside, and load the
encoder into a new ResEnc-L or Primus-M: strictly for segmentation, by matching names for classification. Sources:
`documentation/Getting_started_OpenMind.md` of nnssl, and the loaders of nnU-Net and SSL3D_classification.

Classification builds its own Primus, with tokens ordered (axis 1, axis 0, axis 2), without LayerScale and without the
norm inside attention. For it, a Primus is exported to a second file.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.finetuning.segmentation import plans
from viewalign.networks.registry import PRIMUS
from viewalign.utils.outputs import check_folder
from viewalign.weights import adaptation_plan, client_forms, files, token_order
from viewalign.weights.export import export_run, write_checkpoint
from viewalign.weights.run_folder import RunFolder
from viewalign.weights.run_state import Weights

TRACKS = {"resenc-l": "ResEncL", "primus-m": "PrimusM"}
"""The two tracks of the challenge, by the names of their networks in this package."""
PATCH = (160, 160, 160)
"""Patch size in voxels of all fine-tuning."""
DATASET, CONFIGURATION = "Dataset745_OpenMind", "onemmiso"
_CHECKPOINT = "checkpoint_final.pth"
_PARTS = ("network_weights", "nnssl_adaptation_plan")
_FIELDS = (
    *("architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize"),
    *("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe"),
)


_DROPPED = re.compile(r"eva\.blocks\.\d+\.(gamma_[12]|attn\.norm\.(weight|bias))")
"""Weights of a Primus's encoder that classification ignores without a message."""


@dataclass(frozen=True)
class Submission:
    """An exported run.

    Attributes:
        checkpoint: the file for segmentation.
        classification: the file for classification; the same for a ResEnc.
        passed: descriptions of the checks.
        dropped: weights of the encoder that classification drops.
    """

    checkpoint: Path
    classification: Path
    passed: tuple[str, ...]
    dropped: tuple[str, ...]


def write_submission(run: str | Path, out: str | Path | None = None, weights: Weights = "student") -> Submission:
    """Export a run's newest checkpoint for the challenge, and check it.

    Args:
        run: the run's folder.
        out: output folder, with the layout of nnssl's results; default `ssl3d/` in the run's folder.
        weights: student or teacher.

    Raises:
        UserError: a network that is in neither track, images that were not z-scored at 1 mm, or a failed check.
    """
    folder = RunFolder(Path(run))
    _check_track(folder.recipe())
    target = folder.root / "ssl3d" if out is None else Path(out)
    check_folder(target, "export")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".export-") as scratch:
        export = export_run(run, Path(scratch) / "export", weights)
        root = files.load_checkpoint(export / _CHECKPOINT)
        roots = [root] if root["nnssl_adaptation_plan"]["key_to_lpe"] is None else [root, for_classification(root)]
        written = [_write_results(one, Path(scratch) / DATASET) for one in roots]
        passed, *_ = [check(file) for file in written]
        (Path(scratch) / DATASET).replace(target / DATASET)
    first, last = (target / file.relative_to(scratch) for file in (written[0], written[-1]))
    return Submission(first, last, passed, dropped_by_classification(root))


def _write_results(root: Mapping[str, Any], dataset: Path) -> Path:
    """Write a checkpoint in the layout of nnssl's results and return the file."""
    plan = root["nnssl_adaptation_plan"]
    place = dataset / f"{plan['trainer_name']}__nnsslPlans__{CONFIGURATION}"
    (place / "fold_all").mkdir(parents=True)
    write_checkpoint(place, root["network_weights"], plan, root["current_epoch"])
    (place / "plans.json").write_text(json.dumps(plan["pretrain_plan"], indent=4))
    return (place / _CHECKPOINT).replace(place / "fold_all" / _CHECKPOINT)


def for_classification(root: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Primus's checkpoint with tokens in the order of classification, and without need of LayerScale.

    Args:
        root: contents of a checkpoint in raster order.
    """
    plan = root["nnssl_adaptation_plan"]
    weights = root["network_weights"]
    step = weights[f"{plan['keys_to_in_proj'][0]}.weight"].shape[2:]
    d, h, w = (side // n for side, n in zip(plan["pretrain_patch_size"], step, strict=True))
    weights = token_order.to_hdw(client_forms.without_layer_scale(weights), (d, h, w))
    name = plan["trainer_name"].replace("viewalign_", token_order.HDW_PREFIX, 1)
    return adaptation_plan.checkpoint(weights, {**plan, "trainer_name": name}, root["current_epoch"], root["citations"])


def dropped_by_classification(root: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the weights of a checkpoint's encoder that classification's network does not have."""
    return tuple(name for name in root["network_weights"] if _DROPPED.fullmatch(name))


def _check_track(recipe: Recipe) -> None:
    """Check the network before the export, which takes minutes."""
    if recipe.network.name not in TRACKS:
        raise UserError(
            f"SSL3D has two tracks, {' and '.join(TRACKS)}; this run trained {recipe.network.name}. Use "
            "`viewalign export` with another format."
        )


def check(checkpoint: Path) -> tuple[str, ...]:
    """Check a checkpoint for the challenge's loaders.

    Args:
        checkpoint: `…/TRAINER__PLANS__CONFIGURATION/fold_all/checkpoint_final.pth`.

    Returns:
        Descriptions of the checks.

    Raises:
        UserError: all failed checks, or a file that cannot be read.
    """
    results = run_checks(files.load_checkpoint(checkpoint), checkpoint.parent.parent.name)
    failures = [failure for found in results.values() for failure in found]
    if failures:
        raise UserError(f"{checkpoint} would not pass: {'; '.join(failures)}.")
    return tuple(results)


def run_checks(root: Mapping[str, Any], folder: str) -> dict[str, list[str]]:
    """Return the failures of each check, by its description; later checks are skipped after a failure of structure.

    Args:
        root: contents of a checkpoint.
        folder: name `TRAINER__PLANS__CONFIGURATION` of its folder.
    """
    results = {"a checkpoint with weights and plan": [name for name in _PARTS if not isinstance(root.get(name), dict)]}
    if any(results.values()):
        return results
    plan, weights = root["nnssl_adaptation_plan"], root["network_weights"]
    results["every field of the plan that is read"] = [name for name in _FIELDS if name not in plan]
    if any(results.values()):
        return results
    results["every weight is finite"] = _not_finite(weights)
    results[f"plan and folder say {CONFIGURATION}: 1 mm, z-scores, one channel"] = _plan_failures(plan, folder)
    results["a network of the challenge"] = _network_failures(plan)
    if not any(results.values()):
        shapes = _network_shapes(plan)
        segmentation = list(_strict_loading_failures(plan, weights, shapes))
        results["segmentation: stem and encoder load strictly at 160³"] = segmentation
        results["classification: finds every weight of the encoder"] = list(_unmatched(plan, weights, shapes))
    return results


def _not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} is not finite" for name, value in weights.items() if not torch.isfinite(value).all()][:3]


def _plan_failures(plan: Mapping[str, Any], folder: str) -> list[str]:
    """Check the configuration, by which classification finds the patch size."""
    configurations = plan["pretrain_plan"]["configurations"]
    named = folder.split("__")[-1]
    if list(configurations) != [CONFIGURATION] or named != CONFIGURATION:
        return [f"the plan has {', '.join(configurations)} and the folder {named}, but both must be {CONFIGURATION}"]
    settings = configurations[CONFIGURATION]
    schemes, channels = settings["normalization_schemes"], plan["pretrain_num_input_channels"]
    return [
        *([] if settings["spacing"] == [1, 1, 1] else [f"the voxel size is {settings['spacing']} mm"]),
        *([] if schemes == ["ZScoreNormalization"] else [f"images are normalised by {', '.join(schemes)}"]),
        *([] if channels == 1 else [f"{channels} image channels; the challenge's images have one"]),
    ]


def _network_failures(plan: Mapping[str, Any]) -> list[str]:
    name = plan["architecture_plans"]["arch_class_name"]
    return [] if name in TRACKS.values() else [f"the network is {name}"]


def _network_shapes(plan: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Return names and shapes of the weights of the fine-tuned network."""
    architecture = plans.architecture_of(plan, "the plan")
    with torch.device("meta"):
        network = plans.build_network(architecture, 1, 2, PATCH)
    return {name: value.shape for name, value in network.state_dict().items()}


def _strict_loading_failures(
    plan: Mapping[str, Any], weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> Iterator[str]:
    """Check that names and shapes below stem and encoder match; the position embedding has the size of its patch."""
    for key in (plan["key_to_stem"], plan["key_to_encoder"]):
        given = {name: value.shape for name, value in weights.items() if name.startswith(key)}
        wanted = {name: shape for name, shape in shapes.items() if name.startswith(f"{key}.")}
        yield from (f"{name} is missing" for name in sorted(wanted.keys() - given.keys())[:3])
        yield from (f"{name} is unexpected" for name in sorted(given.keys() - wanted.keys())[:3])
        for name in sorted(wanted.keys() & given.keys()):
            shape = _positions(plan, wanted[name]) if name == plan["key_to_lpe"] else wanted[name]
            if given[name] != shape:
                yield f"{name} has the shape {tuple(given[name])} instead of {tuple(shape)}"
    yield from (f"{key}.weight is missing" for key in plan["keys_to_in_proj"] if f"{key}.weight" not in weights)


def _positions(plan: Mapping[str, Any], shape: torch.Size) -> torch.Size:
    """Return the shape of the position embedding for the patch of the plan."""
    patch = plan["pretrain_plan"]["configurations"][CONFIGURATION]["patch_size"]
    token = PRIMUS["primus-m"]["patch_embed_size"]
    tokens = math.prod(side // step for side, step in zip(patch, token, strict=True))
    return torch.Size((shape[0], tokens, shape[2]))


def _unmatched(
    plan: Mapping[str, Any], weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]
) -> Iterator[str]:
    """Check names as classification does: it removes "encoder." from a Primus's names and ignores missing weights."""
    is_primus = plan["key_to_lpe"] is not None
    given = {name.replace("encoder.", "") if is_primus else name for name in weights}
    parts = (f"{plan['key_to_stem']}.", f"{plan['key_to_encoder']}.")
    yield from (
        f"classification would not find {name}" for name in shapes if name.startswith(parts) and name not in given
    )
