"""The checkpoint and adaptation plan that transfer an encoder from nnssl to nnU-Net.

The plan is data that nnU-Net reads to rebuild the network, the spacing and the normalisation of pretraining; the
checkpoint is a plain dictionary that `torch.load(weights_only=True)` can load. Field names and values follow nnssl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from viewalign.methods.registry import METHODS
from viewalign.networks.registry import PRIMUS, RESENC, unet_arguments

Size = tuple[int, int, int]

_PRESETS = {"resenc-l": "ResEncL", "primus-m": "PrimusM"}
_RECOMMENDED_PATCH = [160, 160, 160]
_RESAMPLE = "resample_data_or_seg_to_shape"
_UNET_KEYS = {
    "key_to_encoder": "encoder.stages",
    "key_to_stem": "encoder.stem",
    "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
    "key_to_lpe": None,
}
_PRIMUS_KEYS = {
    "key_to_encoder": "eva",
    "key_to_stem": "down_projection",
    "keys_to_in_proj": ["down_projection.proj"],
    "key_to_lpe": "eva.pos_embed",
}
"""Where nnU-Net finds the parts of an encoder."""


def adaptation_plan(
    network: str,
    channels: int,
    size: Size,
    spacing: tuple[float, float, float] | None,
    foreground_norm: bool,
    trainer_name: str,
    plans: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe an encoder to nnU-Net.

    Args:
        network: a name of `networks.registry`.
        channels: image channels of the pretraining.
        size: (D, H, W) of the views in voxels.
        spacing: voxel size of the prepared images in mm, in array order; None if each image kept its own.
        foreground_norm: whether images were normalised by statistics of their foreground only.
        trainer_name: the trainer recorded in the checkpoint.
        plans: nnssl's plans of the data, with one configuration; default: made from `spacing` and `foreground_norm`.
    """
    is_primus = network in PRIMUS
    return {
        "architecture_plans": _architecture(network),
        "pretrain_plan": _pretrain_plan(size, spacing, foreground_norm) if plans is None else _with_size(plans, size),
        "pretrain_num_input_channels": channels,
        "pretrain_patch_size": list(size),
        "recommended_downstream_patchsize": _RECOMMENDED_PATCH if network in _PRESETS else list(size),
        **(_PRIMUS_KEYS if is_primus else _UNET_KEYS),
        "trainer_name": trainer_name,
    }


def schemes_of(plan: Mapping[str, Any]) -> list[str]:
    """Return the normalisations of a plan's images, one per channel; empty if the plan does not state them."""
    configurations = (plan.get("pretrain_plan") or {}).get("configurations") or {}
    first: Any = next(iter(configurations.values()), {})
    return [str(name) for name in first.get("normalization_schemes") or ()] if isinstance(first, Mapping) else []


def plan_of_nnunet(init_args: Any) -> dict[str, Any]:
    """Describe the encoder of a checkpoint trained by nnU-Net from the plans in it; empty if it has none.

    Args:
        init_args: the checkpoint's entry of this name.
    """
    try:
        plans, name = init_args["plans"], init_args["configuration"]
        configuration = plans["configurations"][name]
        architecture = configuration["architecture"]
        patch = [int(side) for side in configuration["patch_size"]]
        described = {
            "arch_class_name": str(architecture["network_class_name"]),
            "arch_kwargs": architecture["arch_kwargs"],
            "arch_kwargs_requiring_import": list(architecture["_kw_requires_import"]),
        }
        used = ("spacing", "normalization_schemes", "use_mask_for_norm", "patch_size")
        schemes = {key: configuration[key] for key in used}
        channels = len(configuration["normalization_schemes"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {
        "architecture_plans": described,
        "pretrain_plan": {"configurations": {str(name): schemes}},
        "pretrain_num_input_channels": channels,
        "pretrain_patch_size": patch,
        "recommended_downstream_patchsize": patch,
        **(_PRIMUS_KEYS if "Primus" in described["arch_class_name"] else _UNET_KEYS),
    }


_OTHER_SCHEMES = {"none": "NoNormalization", "percentile": "PercentileNormalization", "window": "WindowNormalization"}
"""Names in a plan of normalisations other than z-score; nnssl and nnU-Net lack the last two."""


PREPARATION = "viewalign_preparation"
"""Key of a plan for settings of `prepare` that nnssl and nnU-Net have no entry for."""
PREPARATION_KEYS = ("spacing", "interpolation", "normalise", "percentiles", "window", "fill_nonfinite")


def plan_of(network: str, channels: int, size: Size, method: str, preparation: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an encoder of this package to nnU-Net.

    Args:
        network: a name of `networks.registry`.
        channels: image channels of the pretraining.
        size: (D, H, W) of the views in voxels.
        method: the pretraining method's name.
        preparation: how the images were prepared, as stored in checkpoints and exports: `spacing` and `normalise` of a
            store, or `nnssl_plans` of data in nnssl's layout.
    """
    spacing = preparation.get("spacing")
    triple = None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    normalise = preparation.get("normalise")
    plans = preparation.get("nnssl_plans")
    plan = adaptation_plan(network, channels, size, triple, normalise == "foreground", f"viewalign_{method}", plans)
    if normalise in _OTHER_SCHEMES:
        for configuration in plan["pretrain_plan"]["configurations"].values():
            configuration["normalization_schemes"] = [_OTHER_SCHEMES[normalise]]
    if normalise is not None:
        plan[PREPARATION] = {key: preparation[key] for key in PREPARATION_KEYS if key in preparation}
        if preparation.get("suv"):
            plan[PREPARATION]["suv"] = True
    return plan


def _architecture(network: str) -> dict[str, Any]:
    """Name nnssl's preset if there is one, otherwise class and all arguments."""
    if network in _PRESETS:
        return {"arch_class_name": _PRESETS[network], "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    if network in RESENC:
        return {
            "arch_class_name": "ResidualEncoderUNet",
            "arch_kwargs": unet_arguments(network),
            "arch_kwargs_requiring_import": ["conv_op", "norm_op", "nonlin"],
        }
    spec = PRIMUS[network]
    return {
        "arch_class_name": "Primus",
        "arch_kwargs": {
            "embed_dim": spec["embed_dim"],
            "patch_embed_size": list(spec["patch_embed_size"]),
            "encoder_eva_depth": spec["eva_depth"],
            "encoder_eva_numheads": spec["eva_numheads"],
            "scale_attn_inner": True,
            "init_values": 0.1,
        },
        "arch_kwargs_requiring_import": [],
    }


def _pretrain_plan(size: Size, spacing: tuple[float, float, float] | None, foreground_norm: bool) -> dict[str, Any]:
    name = "noresample" if spacing is None else "onemmiso" if spacing == (1.0, 1.0, 1.0) else "fixed"
    configuration = {
        "data_identifier": f"nnsslPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing_style": name,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [foreground_norm],
        "resampling_fn_data": _RESAMPLE,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_mask": _RESAMPLE,
        "resampling_fn_mask_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "spacing": None if spacing is None else list(spacing),
        "patch_size": list(size),
    }
    return {
        "dataset_name": "viewalign",
        "plans_name": "nnsslPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0] if spacing is None else list(spacing),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "configurations": {name: configuration},
    }


def _with_size(plans: dict[str, Any], size: Size) -> dict[str, Any]:
    configurations = {name: {**how, "patch_size": list(size)} for name, how in plans["configurations"].items()}
    return {**plans, "configurations": configurations}


def citations_of(trainer_name: str) -> list[dict[str, Any]]:
    """Return what to cite for weights of a trainer `viewalign_[hdw_]METHOD`; nothing for other trainers.

    nnU-Net prints each entry's name, then the lines of its list.
    """
    entry = METHODS.get(trainer_name.rpartition("_")[2]) if trainer_name.startswith("viewalign_") else None
    if entry is None:
        return []
    cited = {
        "method": (entry.title, f"{entry.title}, {entry.paper}"),
        "software": ("viewalign", "viewalign, as in its CITATION.cff"),
    }
    return [{"type": f"Pretraining {kind}", "name": name, "apa_citations": [x]} for kind, (name, x) in cited.items()]


def checkpoint(
    state: Mapping[str, Tensor],
    plan: Mapping[str, Any],
    epochs: int,
    citations: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Assemble the root of `checkpoint_final.pth`: weights on the CPU and the plan, without paths and data.

    Args:
        state: the network's state dict in dynamic-network-architectures' names, aliases included.
        plan: from `adaptation_plan`.
        epochs: how long it was trained, in nnssl's epochs of 250 steps.
        citations: what to cite; default `citations_of` the plan's trainer.
    """
    return {
        "network_weights": {name: value.detach().cpu() for name, value in state.items()},
        "nnssl_adaptation_plan": plan,
        "trainer_name": plan["trainer_name"],
        "current_epoch": epochs,
        "citations": citations_of(plan["trainer_name"]) if citations is None else [dict(one) for one in citations],
    }
