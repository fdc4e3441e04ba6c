"""Which networks there are, by name: their shapes alone, without what it takes to build them."""

from __future__ import annotations

from typing import Any

RESENC: dict[str, dict[str, Any]] = {
    "resenc-l": {"features_per_stage": [32, 64, 128, 256, 320, 320], "n_blocks_per_stage": [1, 3, 4, 6, 6, 6]},
    "resenc-xs": {"features_per_stage": [16, 32, 64, 128], "n_blocks_per_stage": [1, 2, 2, 2]},
}
"""Residual-encoder U-Nets."""

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
}
"""Transformers; `feature_heads` and `decoder_heads` are those of the decoders that pretraining puts behind them."""


def unet_arguments(name: str) -> dict[str, Any]:
    """Return the 14 keyword arguments, as plain JSON values, that build the network of a name (nnU-Net's spelling)."""
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
