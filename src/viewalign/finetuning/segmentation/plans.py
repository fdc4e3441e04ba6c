"""nnU-Net plans from adaptation plans: the network of a pretraining, its voxel size and normalisation.

nnU-Net is not imported. Plans only name built-in classes, so that nnU-Net's own commands accept them.
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
"""Key of our trainer's settings in a plan."""

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
    """Return the `architecture` block of a plan for the network of an adaptation plan, with presets expanded.

    Args:
        plan: nnssl's adaptation plan of a checkpoint.
        file: name of the checkpoint, for messages.

    Raises:
        UserError: no plan, or an unknown network.
    """
    described = plan.get("architecture_plans")
    if not isinstance(described, Mapping) or "arch_class_name" not in described:
        raise UserError(
            f"{file} has no adaptation plan, which describes its network, voxel size and normalisation. Put "
            "adaptation_plan.json next to it, or export the run with `viewalign export`."
        )
    name, arguments = str(described["arch_class_name"]).rsplit(".", 1)[-1], described.get("arch_kwargs")
    if name == "ResEncL":
        return _unet("ResidualEncoderUNet", unet_arguments("resenc-l"))
    if name in _PRIMUS:
        return _primus({**_PRIMUS[name], "patch_embed_size": [8, 8, 8]})
    if not isinstance(arguments, Mapping):
        raise UserError(f"{file} has an unknown network '{name}', and its plan has no arguments.")
    if name in _UNETS:
        return _unet(name, arguments)
    if "embed_dim" in arguments:
        depth = arguments.get("encoder_eva_depth", arguments.get("eva_depth"))
        heads = arguments.get("encoder_eva_numheads", arguments.get("eva_numheads"))
        sizes = {"embed_dim": arguments["embed_dim"], "eva_depth": depth, "eva_numheads": heads}
        return _primus({**sizes, "patch_embed_size": list(arguments["patch_embed_size"])})
    raise UserError(f"{file} has a network '{name}'; supported are ResEnc U-Nets and Primus.")


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
    """Return whether a plan's network is a Primus."""
    return str(architecture["network_class_name"]).endswith(".Primus")


def primus_preset(architecture: Mapping[str, Any]) -> str | None:
    """Return the size S, B, M or L of a Primus for which stock nnU-Net has a trainer; None for other networks."""
    arguments = architecture["arch_kwargs"]
    for name, sizes in _PRIMUS.items():
        fits = is_primus(architecture) and all(arguments.get(key) == value for key, value in sizes.items())
        if fits and list(arguments["patch_embed_size"]) == [8, 8, 8]:
            return name.removeprefix("Primus")
    return None


def build_network(
    architecture: Mapping[str, Any], channels: int, outputs: int, patch: Sequence[int], drop_path: float = 0.0
) -> nn.Module:
    """Build the network of a plan, initialised as by nnU-Net, without deep supervision.

    Args:
        architecture: `architecture` block of a plan.
        channels: number of image channels.
        outputs: number of classes with background, or of regions.
        patch: (D, H, W) in voxels; the only size that a Primus accepts.
        drop_path: stochastic depth of a Primus.

    Raises:
        UserError: an unknown network, or an invalid patch.
    """
    name = str(architecture["network_class_name"]).rsplit(".", 1)[-1]
    arguments = copy.deepcopy(dict(architecture["arch_kwargs"]))
    check_patch(architecture, patch)
    if name == "Primus":
        from dynamic_network_architectures.architectures.primus import Primus  # imports timm, which takes seconds

        size = {"input_shape": tuple(patch), "drop_path_rate": drop_path}
        return cast(nn.Module, Primus(input_channels=channels, num_classes=outputs, **arguments, **size))
    if name not in _UNETS:
        raise UserError(f"The plan names an unknown network {name}; supported are {', '.join(_UNETS)} and Primus.")
    for key in architecture["_kw_requires_import"]:
        if arguments.get(key) is not None:
            arguments[key] = _operation(arguments[key])
    network = _UNETS[name](input_channels=channels, num_classes=outputs, deep_supervision=False, **arguments)
    network.apply(network.initialize)
    return cast(nn.Module, network)


def _operation(name: str) -> type[nn.Module]:
    """Return a layer by its name in plans, from a fixed list: a plan must not import arbitrary modules."""
    if name not in _OPERATIONS:
        raise UserError(f"The plan names an unknown layer {name}; supported are {', '.join(sorted(_OPERATIONS))}.")
    return _OPERATIONS[name]


def strides_of(architecture: Mapping[str, Any]) -> Size:
    """Return the factors (D, H, W) that the sides of a patch must be multiples of."""
    arguments = architecture["arch_kwargs"]
    if is_primus(architecture):
        d, h, w = arguments["patch_embed_size"]
        return int(d), int(h), int(w)
    steps = [[stride] * 3 if isinstance(stride, int) else stride for stride in arguments["strides"]]
    d, h, w = (math.prod(step[axis] for step in steps) for axis in range(3))
    return d, h, w


def check_patch(architecture: Mapping[str, Any], patch: Sequence[int]) -> None:
    """Check the patch of a network.

    Raises:
        UserError: sides that are not multiples of its stride, or a single voxel at the bottleneck.
    """
    strides = strides_of(architecture)
    shown = "×".join(str(side) for side in patch)
    if len(patch) != 3 or any(side < 1 or side % step for side, step in zip(patch, strides, strict=True)):
        steps = "×".join(str(step) for step in strides)
        raise UserError(f"A patch of {shown} is invalid for this network: sides must be multiples of {steps}.")
    if not is_primus(architecture) and math.prod(patch) == math.prod(strides):
        raise UserError(f"A patch of {shown} has a single voxel at the bottleneck of the network; use a larger one.")


def choose_patch(architecture: Mapping[str, Any], wanted: Sequence[int], median: Sequence[float]) -> Size:
    """Choose a patch: the recommended one, limited to the size of the median image, in multiples of the stride.

    Args:
        architecture: of the plan.
        wanted: patch recommended by the pretraining.
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
    """Which settings a plan takes from the pretraining or from nnU-Net's plan of the dataset.

    Attributes:
        name: of the plan; must not contain two underscores, at which nnU-Net splits folder names.
        spacing: voxel size in mm in array order, or "pretraining" or "dataset".
        norm: normalisation of the "pretraining" or the "dataset".
        patch: (D, H, W), or None to choose one.
        batch: patches per step.
        own_network: keep the dataset's network, to which weights are adapted.
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
    """Create a plan for a dataset from nnU-Net's plan and the adaptation plan of a pretraining.

    Args:
        base: nnU-Net's plan of the dataset, with a configuration `3d_fullres`.
        pretraining: nnssl's adaptation plan.
        choices: sources of the settings.
        file: name of the checkpoint, for messages.
        channels: number of channels of the dataset.

    Raises:
        UserError: an invalid name or patch, no `3d_fullres`, or no plan or voxel size of the pretraining.
    """
    if "__" in choices.name:
        raise UserError(f"A plan must not be called {choices.name}: nnU-Net splits folder names at two underscores.")
    if CONFIGURATION not in base.get("configurations", {}):
        raise UserError(f"The base plan has no {CONFIGURATION}; images with one slice are not supported.")
    plan = {key: copy.deepcopy(value) for key, value in base.items() if key != "configurations"}
    configuration = copy.deepcopy(dict(base["configurations"][CONFIGURATION]))
    for key in ("next_stage", "previous_stage", "inherits_from"):
        configuration.pop(key, None)
    pretrained = _first_configuration(pretraining)
    architecture, wanted = configuration["architecture"], configuration["patch_size"]
    if not choices.own_network:
        architecture = architecture_of(pretraining, file)
        wanted = _recommended_patch(pretraining, pretrained) or wanted
    spacing = _spacing(choices.spacing, pretrained, file)
    if spacing is not None:
        _set_spacing(plan, configuration, spacing)
    if choices.norm == "pretraining":
        _set_normalisation(configuration, pretrained, channels, file)
    patch = choices.patch or choose_patch(architecture, wanted, configuration["median_image_size_in_voxels"])
    check_patch(architecture, patch)
    configuration.update(architecture=architecture, patch_size=list(patch), batch_size=choices.batch)
    configuration["data_identifier"] = data_identifier(plan, configuration)
    return {**plan, "plans_name": choices.name, "configurations": {CONFIGURATION: configuration}}


def _first_configuration(pretraining: Mapping[str, Any]) -> Mapping[str, Any]:
    plan = pretraining.get("pretrain_plan")
    configurations = plan.get("configurations") if isinstance(plan, Mapping) else None
    first = next(iter(configurations.values()), None) if isinstance(configurations, Mapping) else None
    return first if isinstance(first, Mapping) else {}


def _spacing(requested: Spacing | str, pretrained: Mapping[str, Any], file: str) -> Spacing | None:
    """Return the voxel size to set; None keeps the dataset's."""
    if requested == "dataset":
        return None
    value = pretrained.get("spacing") if requested == "pretraining" else requested
    if value is None or isinstance(value, str):
        raise UserError(
            f"{file} has no voxel size: its images have different voxel sizes. Use spacing=dataset, or a voxel size."
        )
    return float(value[0]), float(value[1]), float(value[2])


def _set_spacing(plan: dict[str, Any], configuration: dict[str, Any], spacing: Spacing) -> None:
    """Set a voxel size in array order, without transposing axes, as in pretraining."""
    backward = plan["transpose_backward"]
    size = [plan["original_median_shape_after_transp"][axis] for axis in backward]
    original = [plan["original_median_spacing_after_transp"][axis] for axis in backward]
    plan.update(
        original_median_shape_after_transp=size,
        original_median_spacing_after_transp=original,
        transpose_forward=[0, 1, 2],
        transpose_backward=[0, 1, 2],
    )
    median = [n * a / b for n, a, b in zip(size, original, spacing, strict=True)]
    configuration.update(spacing=list(spacing), median_image_size_in_voxels=median)


def _set_normalisation(configuration: dict[str, Any], pretrained: Mapping[str, Any], channels: int, file: str) -> None:
    scheme = _first(pretrained.get("normalization_schemes"), "ZScoreNormalization")
    if scheme not in _SCHEMES:
        raise UserError(
            f"{file} was pretrained with a normalisation ({scheme}) that stock nnU-Net does not have. Use "
            "normalise=dataset, or pretrain on a store of z-scores."
        )
    configuration["normalization_schemes"] = [scheme] * channels
    configuration["use_mask_for_norm"] = [bool(_first(pretrained.get("use_mask_for_norm"), False))] * channels


def _first(values: Any, default: Any) -> Any:
    return values[0] if isinstance(values, Sequence) and not isinstance(values, str) and values else default


def _recommended_patch(pretraining: Mapping[str, Any], pretrained: Mapping[str, Any]) -> list[int] | None:
    """Return the recommended patch, or that of the pretraining."""
    value = pretraining.get("recommended_downstream_patchsize") or pretrained.get("patch_size")
    return [int(side) for side in value] if isinstance(value, Sequence) and len(value) == 3 else None


def data_identifier(plan: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    """Return a name for the folder of preprocessed cases that changes with anything that changes their voxels."""
    keys = ["spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name"]
    keys += [key for key in configuration if key.startswith(("resampling_fn_data", "resampling_fn_seg"))]
    essence = {key: configuration.get(key) for key in sorted(keys)}
    essence |= {key: plan.get(key) for key in ("transpose_forward", "image_reader_writer")}
    digest = hashlib.sha256(json.dumps(essence, sort_keys=True, default=str).encode()).hexdigest()[:8]
    sizes = "x".join(f"{np.round(size, 3):g}" for size in configuration["spacing"])
    return f"viewalign_{sizes}mm_{digest}"


def pretrain_info(
    pretraining: Mapping[str, Any], checkpoint: str, name: str, citations: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the block by which nnU-Net's native commands read a pretrained checkpoint.

    Args:
        pretraining: nnssl's adaptation plan.
        checkpoint: path of the checkpoint in nnssl's layout.
        name: of the checkpoint.
        citations: what nnU-Net prints at the start of training, as nnssl's checkpoints list it.
    """
    pretrained = _first_configuration(pretraining)
    return {
        "checkpoint_path": checkpoint,
        "checkpoint_name": name,
        "key_to_encoder": pretraining["key_to_encoder"],
        "key_to_stem": pretraining["key_to_stem"],
        "keys_to_in_proj": list(pretraining["keys_to_in_proj"]),
        "key_to_lpe": pretraining.get("key_to_lpe"),
        "pt_num_in_channels": pretraining["pretrain_num_input_channels"],
        "pt_used_patchsize": list(pretraining.get("pretrain_patch_size") or pretrained.get("patch_size") or []),
        "pt_recommended_downstream_patchsize": list(pretraining["recommended_downstream_patchsize"]),
        "citations": [dict(one) for one in citations],
    }
