"""nnU-Net's plans as data: the network of a pretraining, its voxel size and normalisation, in stock nnU-Net's words.

Nothing of nnU-Net is imported. A plan made here names built-in classes alone, so that nnU-Net's own commands take it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from viewalign.errors import UserError
from viewalign.networks.registry import unet_arguments

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]
Norm = Literal["pretraining", "dataset"]

CONFIGURATION = "3d_fullres"
BLOCK = "viewalign"
"""The key of a plan under which our trainer finds what it needs."""

_SCHEMES = ("ZScoreNormalization", "NoNormalization")
_UNETS = {"ResidualEncoderUNet": ResidualEncoderUNet, "PlainConvUNet": PlainConvUNet}
_MODULE = "dynamic_network_architectures.architectures"
_IMPORTED = ("conv_op", "norm_op", "dropout_op", "nonlin")
_PRIMUS: dict[str, dict[str, int]] = {
    "PrimusS": {"embed_dim": 396, "eva_depth": 12, "eva_numheads": 6},
    "PrimusB": {"embed_dim": 792, "eva_depth": 12, "eva_numheads": 12},
    "PrimusM": {"embed_dim": 864, "eva_depth": 16, "eva_numheads": 12},
    "PrimusL": {"embed_dim": 1056, "eva_depth": 24, "eva_numheads": 16},
}
"""Sizes of Primus as published (arXiv:2503.01835, table 2); tokens are 8³ voxels."""
_OPERATIONS = {
    "torch.nn.modules.conv.Conv3d": nn.Conv3d,
    "torch.nn.modules.instancenorm.InstanceNorm3d": nn.InstanceNorm3d,
    "torch.nn.LeakyReLU": nn.LeakyReLU,
    "torch.nn.modules.activation.LeakyReLU": nn.LeakyReLU,
    "torch.nn.modules.dropout.Dropout3d": nn.Dropout3d,
}


def architecture_of(plan: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return the `architecture` block of a plan for the network that an adaptation plan describes, presets expanded.

    Args:
        plan: nnssl's adaptation plan of a checkpoint.
        file: the checkpoint's name, for messages.

    Raises:
        UserError: no plan, or a network that is not known.
    """
    told = plan.get("architecture_plans")
    if not isinstance(told, Mapping) or "arch_class_name" not in told:
        raise UserError(
            f"{file} has no adaptation plan: nothing tells its network, voxel size and normalisation. Put "
            "adaptation_plan.json beside it, or export the run with `viewalign export`."
        )
    name, given = str(told["arch_class_name"]).rsplit(".", 1)[-1], told.get("arch_kwargs")
    if name == "ResEncL":
        return _unet("ResidualEncoderUNet", unet_arguments("resenc-l"))
    if name in _PRIMUS:
        return _primus({**_PRIMUS[name], "patch_embed_size": [8, 8, 8]})
    if not isinstance(given, Mapping):
        raise UserError(f"{file} is of a network '{name}' that is not known here, and its plan gives no arguments.")
    if name in _UNETS:
        return _unet(name, given)
    if "embed_dim" in given:
        depth = given.get("encoder_eva_depth", given.get("eva_depth"))
        heads = given.get("encoder_eva_numheads", given.get("eva_numheads"))
        sizes = {"embed_dim": given["embed_dim"], "eva_depth": depth, "eva_numheads": heads}
        return _primus({**sizes, "patch_embed_size": list(given["patch_embed_size"])})
    raise UserError(f"{file} is of a network '{name}'; known are ResEnc U-Nets and Primus.")


def _unet(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    imported = [key for key in _IMPORTED if key in arguments]
    return {
        "network_class_name": f"{_MODULE}.unet.{name}",
        "arch_kwargs": copy.deepcopy(dict(arguments)),
        "_kw_requires_import": imported,
    }


def _primus(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "network_class_name": f"{_MODULE}.primus.Primus",
        "arch_kwargs": {**sizes, "scale_attn_inner": True, "init_values": 0.1},
        "_kw_requires_import": [],
    }


def is_primus(architecture: Mapping[str, Any]) -> bool:
    """Say whether a plan's network is a Primus."""
    return str(architecture["network_class_name"]).endswith(".Primus")


def primus_preset(architecture: Mapping[str, Any]) -> str | None:
    """Return the letter S, B, M or L of a Primus that stock nnU-Net has a trainer for; None for any other network."""
    arguments = architecture["arch_kwargs"]
    for name, sizes in _PRIMUS.items():
        fits = is_primus(architecture) and all(arguments.get(key) == value for key, value in sizes.items())
        if fits and list(arguments["patch_embed_size"]) == [8, 8, 8]:
            return name.removeprefix("Primus")
    return None


def build_network(
    architecture: Mapping[str, Any], channels: int, outputs: int, patch: Sequence[int], drop_path: float = 0.0
) -> nn.Module:
    """Build the network of a plan, freshly initialised as nnU-Net does, without deep supervision.

    Args:
        architecture: a plan's block of that name.
        channels: image channels.
        outputs: classes with background, or regions.
        patch: (D, H, W) in voxels; a Primus takes this size alone.
        drop_path: stochastic depth of a Primus.

    Raises:
        UserError: a network that is not known, or a patch that it cannot take.
    """
    name = str(architecture["network_class_name"]).rsplit(".", 1)[-1]
    arguments = copy.deepcopy(dict(architecture["arch_kwargs"]))
    check_patch(architecture, patch)
    if name == "Primus":
        from dynamic_network_architectures.architectures.primus import Primus  # brings timm along: seconds

        size = {"input_shape": tuple(patch), "drop_path_rate": drop_path}
        return cast(nn.Module, Primus(input_channels=channels, num_classes=outputs, **arguments, **size))
    if name not in _UNETS:
        raise UserError(f"The plan names a network {name}; known are {', '.join(_UNETS)} and Primus.")
    for key in architecture["_kw_requires_import"]:
        if arguments.get(key) is not None:
            arguments[key] = _operation(arguments[key])
    network = _UNETS[name](input_channels=channels, num_classes=outputs, deep_supervision=False, **arguments)
    network.apply(network.initialize)
    return cast(nn.Module, network)


def _operation(name: str) -> type[nn.Module]:
    """Return a layer by the name that plans use; a fixed list, for a plan must not make anything be imported."""
    if name not in _OPERATIONS:
        raise UserError(f"The plan names a layer {name}; known are {', '.join(sorted(_OPERATIONS))}.")
    return _OPERATIONS[name]


def strides_of(architecture: Mapping[str, Any]) -> Size:
    """Return what each side of a patch must be a multiple of."""
    arguments = architecture["arch_kwargs"]
    if is_primus(architecture):
        d, h, w = arguments["patch_embed_size"]
        return int(d), int(h), int(w)
    steps = [[stride] * 3 if isinstance(stride, int) else stride for stride in arguments["strides"]]
    d, h, w = (math.prod(step[axis] for step in steps) for axis in range(3))
    return d, h, w


def check_patch(architecture: Mapping[str, Any], patch: Sequence[int]) -> None:
    """Refuse a patch that a network cannot take.

    Raises:
        UserError: sides that its stride does not divide, or that leave a single voxel at the bottom.
    """
    strides = strides_of(architecture)
    shown = "×".join(str(side) for side in patch)
    if len(patch) != 3 or any(side < 1 or side % step for side, step in zip(patch, strides, strict=True)):
        steps = "×".join(str(step) for step in strides)
        raise UserError(f"A patch of {shown} does not fit the network: its sides must be multiples of {steps}.")
    if not is_primus(architecture) and math.prod(patch) == math.prod(strides):
        raise UserError(f"A patch of {shown} leaves one voxel at the bottom of the network; take a larger one.")


def choose_patch(architecture: Mapping[str, Any], wanted: Sequence[int], median: Sequence[float]) -> Size:
    """Choose a patch: the wanted one, cut to what the median image fills, in whole strides.

    Args:
        architecture: of the plan.
        wanted: the patch that the pretraining recommends.
        median: (D, H, W) of the median image at the plan's voxel size.
    """
    sides = []
    for want, have, step in zip(wanted, median, strides_of(architecture), strict=True):
        need = math.ceil(have / step) * step
        sides.append(max(step, min(want // step * step, need)))
    if not is_primus(architecture) and math.prod(sides) == math.prod(strides_of(architecture)):
        sides = [2 * side for side in sides]
    return sides[0], sides[1], sides[2]


@dataclass(frozen=True)
class Choices:
    """What a plan takes from where.

    Attributes:
        name: of the plan; nnU-Net splits folder names at two underscores, so it may hold none.
        spacing: voxel size in mm in array order, or "pretraining" or "dataset".
        norm: "pretraining" normalises as the pretraining did, "dataset" as nnU-Net planned.
        patch: (D, H, W), or None to choose one.
        batch: patches a step.
        own_network: keep the dataset's own network, and bend the weights to it.
    """

    name: str
    spacing: Spacing | Literal["pretraining", "dataset"] = "pretraining"
    norm: Norm = "pretraining"
    patch: Size | None = None
    batch: int = 2
    own_network: bool = False


def make_plan(
    base: Mapping[str, Any], pretraining: Mapping[str, Any], choices: Choices, file: str, channels: int
) -> dict[str, Any]:
    """Make a plan for a dataset from nnU-Net's own and a pretraining's adaptation plan.

    Args:
        base: a plan of nnU-Net for the dataset, with a configuration `3d_fullres`.
        pretraining: nnssl's adaptation plan.
        choices: what to take from where.
        file: the checkpoint's name, for messages.
        channels: of the dataset.

    Raises:
        UserError: a name with two underscores, no `3d_fullres`, a pretraining without a plan or without a voxel size
            where one is wanted, or a patch that does not fit.
    """
    if "__" in choices.name:
        raise UserError(f"A plan cannot be called {choices.name}: nnU-Net splits folder names at two underscores.")
    if CONFIGURATION not in base.get("configurations", {}):
        raise UserError(f"The base plan has no {CONFIGURATION}; images of one slice are no volumes.")
    plan = {key: copy.deepcopy(value) for key, value in base.items() if key != "configurations"}
    configuration = copy.deepcopy(dict(base["configurations"][CONFIGURATION]))
    for key in ("next_stage", "previous_stage", "inherits_from"):
        configuration.pop(key, None)
    architecture = configuration["architecture"] if choices.own_network else architecture_of(pretraining, file)
    told = _first_configuration(pretraining)
    spacing = _spacing(choices.spacing, told, file)
    if spacing is not None:
        _set_spacing(plan, configuration, spacing)
    if choices.norm == "pretraining":
        _check_scheme(_scheme(told, "normalization_schemes", "ZScoreNormalization"), file)
        configuration["normalization_schemes"] = [
            _scheme(told, "normalization_schemes", "ZScoreNormalization")
        ] * channels
        configuration["use_mask_for_norm"] = [bool(_scheme(told, "use_mask_for_norm", False))] * channels
    median = configuration["median_image_size_in_voxels"]
    wanted = _wanted_patch(pretraining, told) or configuration["patch_size"]
    if choices.own_network:
        wanted = configuration["patch_size"]
    patch = choices.patch or choose_patch(architecture, wanted, median)
    check_patch(architecture, patch)
    configuration.update(architecture=architecture, patch_size=list(patch), batch_size=choices.batch)
    configuration["data_identifier"] = data_identifier(plan, configuration)
    return {**plan, "plans_name": choices.name, "configurations": {CONFIGURATION: configuration}}


def _first_configuration(pretraining: Mapping[str, Any]) -> Mapping[str, Any]:
    plan = pretraining.get("pretrain_plan")
    configurations = plan.get("configurations") if isinstance(plan, Mapping) else None
    first = next(iter(configurations.values()), None) if isinstance(configurations, Mapping) else None
    return first if isinstance(first, Mapping) else {}


def _spacing(asked: Spacing | str, told: Mapping[str, Any], file: str) -> Spacing | None:
    """Return the voxel size to set; None keeps the dataset's."""
    if asked == "dataset":
        return None
    value = told.get("spacing") if asked == "pretraining" else asked
    if value is None or isinstance(value, str):
        raise UserError(
            f"{file} does not tell a voxel size: its images kept their own. Write spacing=dataset, or a voxel size."
        )
    return float(value[0]), float(value[1]), float(value[2])


def _set_spacing(plan: dict[str, Any], configuration: dict[str, Any], spacing: Spacing) -> None:
    """Set a voxel size in array order; axes are no longer transposed, for the pretraining's were not either."""
    backward = plan["transpose_backward"]
    size = [plan["original_median_shape_after_transp"][axis] for axis in backward]
    was = [plan["original_median_spacing_after_transp"][axis] for axis in backward]
    plan.update(
        original_median_shape_after_transp=size,
        original_median_spacing_after_transp=was,
        transpose_forward=[0, 1, 2],
        transpose_backward=[0, 1, 2],
    )
    median = [n * a / b for n, a, b in zip(size, was, spacing, strict=True)]
    configuration.update(spacing=list(spacing), median_image_size_in_voxels=median)


def _check_scheme(scheme: str, file: str) -> None:
    if scheme not in _SCHEMES:
        raise UserError(
            f"{file} was pretrained on images of another normalisation ({scheme}) than stock nnU-Net has. Say "
            "normalise=dataset, or pretrain on a store of z-scores."
        )


def _scheme(told: Mapping[str, Any], key: str, default: Any) -> Any:
    given = told.get(key)
    return given[0] if isinstance(given, Sequence) and not isinstance(given, str) and given else default


def _wanted_patch(pretraining: Mapping[str, Any], told: Mapping[str, Any]) -> list[int] | None:
    """Return the recommended patch, else that of the pretraining."""
    value = pretraining.get("recommended_downstream_patchsize") or told.get("patch_size")
    return [int(side) for side in value] if isinstance(value, Sequence) and len(value) == 3 else None


def data_identifier(plan: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    """Name the folder of preprocessed cases by everything that changes their voxels, so that equal plans share it."""
    keys = ["spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name"]
    keys += [key for key in configuration if key.startswith(("resampling_fn_data", "resampling_fn_seg"))]
    essence = {key: configuration.get(key) for key in sorted(keys)}
    essence |= {key: plan.get(key) for key in ("transpose_forward", "image_reader_writer")}
    digest = hashlib.sha256(json.dumps(essence, sort_keys=True, default=str).encode()).hexdigest()[:8]
    sizes = "x".join(f"{np.round(size, 3):g}" for size in configuration["spacing"])
    return f"viewalign_{sizes}mm_{digest}"


def pretrain_info(pretraining: Mapping[str, Any], checkpoint: str, name: str) -> dict[str, Any]:
    """Return the block by which nnU-Net's coming native commands find a checkpoint.

    Args:
        pretraining: nnssl's adaptation plan.
        checkpoint: path of the checkpoint in nnssl's layout, as those commands shall open it.
        name: what to call it.
    """
    told = _first_configuration(pretraining)
    return {
        "checkpoint_path": checkpoint,
        "checkpoint_name": name,
        "key_to_encoder": pretraining["key_to_encoder"],
        "key_to_stem": pretraining["key_to_stem"],
        "keys_to_in_proj": list(pretraining["keys_to_in_proj"]),
        "key_to_lpe": pretraining.get("key_to_lpe"),
        "pt_num_in_channels": pretraining["pretrain_num_input_channels"],
        "pt_used_patchsize": list(pretraining.get("pretrain_patch_size") or told.get("patch_size") or []),
        "pt_recommended_downstream_patchsize": list(pretraining["recommended_downstream_patchsize"]),
        "citations": list(pretraining.get("citations", [])),
    }
