"""The networks by name; their modules are imported only when one is built."""

from __future__ import annotations

from typing import Any

from torch import nn

from viewalign.errors import UserError
from viewalign.networks.backbone import Backbone
from viewalign.utils.overrides import closest
from viewalign.utils.shapes import Size

RESENC: dict[str, dict[str, Any]] = {
    "resenc-l": {"features_per_stage": [32, 64, 128, 256, 320, 320], "n_blocks_per_stage": [1, 3, 4, 6, 6, 6]},
    "resenc-xs": {"features_per_stage": [16, 32, 64, 128], "n_blocks_per_stage": [1, 2, 2, 2]},
    "resenc-xxs": {"features_per_stage": [4, 8, 8, 8], "n_blocks_per_stage": [1, 1, 1, 1]},
}
"""Residual-encoder U-Nets; xxs is for tests of software, too small to learn much."""

PRIMUS: dict[str, dict[str, Any]] = {
    "primus-m": {
        "embed_dim": 864,
        "patch_embed_size": (8, 8, 8),
        "eva_depth": 16,
        "eva_numheads": 12,
        "feature_heads": 16,
        "decoder_heads": 12,
    },
    "primus-xs": {
        "embed_dim": 192,
        "patch_embed_size": (4, 4, 4),
        "eva_depth": 6,
        "eva_numheads": 4,
        "feature_heads": 4,
        "decoder_heads": 4,
    },
    "primus-xxs": {
        "embed_dim": 48,
        "patch_embed_size": (4, 4, 4),
        "eva_depth": 2,
        "eva_numheads": 2,
        "feature_heads": 2,
        "decoder_heads": 2,
    },
}
"""Transformers; xxs as above. `feature_heads`, `decoder_heads`: attention heads of the two decoders of pretraining."""


def unet_arguments(name: str) -> dict[str, Any]:
    """Return the keyword arguments of the network of a name as JSON values, as in nnU-Net's plans."""
    features = RESENC[name]["features_per_stage"]
    stages = len(features)
    return {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_blocks_per_stage": list(RESENC[name]["n_blocks_per_stage"]),
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def network_names() -> list[str]:
    """Return the names that `network=` accepts."""
    return sorted([*RESENC, *PRIMUS])


def build_backbone(
    name: str,
    size: Size,
    channels: int = 1,
    block: Size = (16, 16, 16),
    drop_path: float = 0.0,
    key: str = "views.patch_size",
) -> Backbone:
    """Build a backbone for views of `size` voxels.

    Args:
        name: one of `network_names()`.
        size: (D, H, W) of the views.
        channels: image channels.
        block: (D, H, W) of a CNN's masked blocks in voxels; Primus masks its own tokens.
        drop_path: rate of stochastic depth of a transformer.
        key: name of the setting for the size, for messages.

    Raises:
        UserError: an unknown name, or a view size that the network does not accept.
    """
    if name in RESENC:
        from viewalign.networks.resenc import ResEncBackbone

        backbone = ResEncBackbone(name, channels, block)
        backbone.check_size(size, key)
        return backbone
    if name in PRIMUS:
        from viewalign.networks.primus import PrimusBackbone  # imports timm, which takes seconds

        return PrimusBackbone(name, size, channels, drop_path, key)
    near = closest(name, network_names())
    raise UserError(f"There is no network '{name}'{near}; there are {', '.join(network_names())}.")


def build_plain(name: str, size: Size) -> nn.Module:
    """Build the network of a name as in dynamic-network-architectures, for one channel and one class."""
    if name in RESENC:
        from viewalign.networks.resenc import build_unet

        unet: nn.Module = build_unet(name, 1, 1)
        return unet
    from viewalign.networks.primus import build_primus

    primus: nn.Module = build_primus(name, 1, 1, size)
    return primus
