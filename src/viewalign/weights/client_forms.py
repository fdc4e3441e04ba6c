"""Weights in the formats of other programs: nnssl's complete Primus, and FOMO's flat dictionary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from viewalign.networks.backbone import Backbone
from viewalign.utils.shapes import Size
from viewalign.weights import token_order
from viewalign.weights.names import ENCODER, family_of

FOMO_PREFIX = "model."
"""Lightning's name of the network in the FOMO baseline."""


def network_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return the weights of a backbone's network under all names of dynamic-network-architectures."""
    state = backbone.state_dict().items()
    return {name.removeprefix("net."): value for name, value in state if name.startswith("net.")}


def whole_primus(backbone: Backbone, size: Size) -> dict[str, Tensor]:
    """Return the weights of nnssl's masked autoencoder: a Primus with its decoder and mask token, tokens as "hdw".

    Args:
        backbone: a Primus.
        size: (D, H, W) of its views.

    Raises:
        UserError: a width whose rotary channels are unknown.
    """
    state = network_state(backbone)
    own = backbone.state_dict()
    state |= {name: value for name, value in own.items() if name.startswith("decoder.")}
    state["mask_token"] = own["filler"][None, None]
    return token_order.to_hdw(state, backbone.grids(size)[0])


def without_layer_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move LayerScale, and scale and shift of the norm inside attention, into the projections that follow or precede.

    The network's output is unchanged. A program that builds its blocks without LayerScale, and drops its weights, then
    computes every MLP branch as trained; in attention only the division by each token's standard deviation is missing.

    Args:
        state: of a Primus, under the names of `weight_names`.
    """
    new = dict(state)
    for name in state:
        if name.startswith("eva.blocks.") and name.endswith(".gamma_1"):
            _fold_block(new, name.removesuffix("gamma_1"))
    return new


def _fold_block(state: dict[str, Tensor], block: str) -> None:
    projection, norm = f"{block}attn.proj", f"{block}attn.norm"
    if f"{norm}.weight" in state:
        weight, shift = state[f"{projection}.weight"].double(), state[f"{norm}.bias"].double()
        state[f"{projection}.bias"] = (state[f"{projection}.bias"].double() + weight @ shift).float()
        scaled = weight * state[f"{norm}.weight"].double()
        # The norm's output has mean 0 before its scale, so the mean of each row is never used.
        state[f"{projection}.weight"] = (scaled - scaled.mean(1, keepdim=True)).float()
        state[f"{norm}.weight"] = torch.ones_like(state[f"{norm}.weight"])
        state[f"{norm}.bias"] = torch.zeros_like(state[f"{norm}.bias"])
    for layer, scale in ((projection, f"{block}gamma_1"), (f"{block}mlp.fc2", f"{block}gamma_2")):
        for leaf, shape in (("weight", (-1, 1)), ("bias", (-1,))):
            state[f"{layer}.{leaf}"] = state[f"{layer}.{leaf}"] * state[scale].view(shape)
        state[scale] = torch.ones_like(state[scale])


def fomo_state(backbone: Backbone) -> dict[str, Tensor]:
    """Return the encoder of a ResEnc for fine-tuning with the FOMO baseline: a flat dictionary with its names."""
    state = network_state(backbone)
    family = family_of(state)
    assert family is not None, "every backbone is of a known family"
    return {FOMO_PREFIX + name: value for name, value in state.items() if name.startswith(ENCODER[family])}
