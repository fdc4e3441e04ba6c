"""Low-rank adapters (Hu et al., arXiv:2106.09685) for a task's encoder, by peft; merged into plain weights at the end.

A Primus gets them at the four projections of every attention, a ResEnc at the two convolutions of every block. Blocks
of dynamic-network-architectures hold a convolution under two names, and run it by the one that peft does not see:
`attach` puts the adapter under both, since otherwise it would learn nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from viewalign.errors import UserError
from viewalign.networks.backbone import Backbone
from viewalign.networks.resenc import ResEncBackbone
from viewalign.randomness import seed_of

_PRIMUS = r"net\.eva\.blocks\.\d+\.attn\.(q_proj|k_proj|v_proj|proj)"
_RESENC = r"net\.encoder\.stages\..*\.conv[12]\.conv"
_MARK = ".lora_"


def attach(backbone: Backbone, rank: int, alpha: float, dropout: float, seed: int) -> None:
    """Put adapters into an encoder, which still answers as before, and freeze everything else in it.

    Args:
        backbone: freshly built.
        rank: of each adapter.
        alpha: adapters are scaled by `alpha / rank`.
        dropout: before each adapter, in training.
        seed: of the adapters' first halves; their second ones begin at 0.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("mode=lora needs one more package: pip install 'viewalign[lora]'.") from None
    places = _RESENC if isinstance(backbone, ResEncBackbone) else _PRIMUS
    # peft's annotation wants a whole number; it divides by the rank and takes any.
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=places)  # type: ignore[arg-type]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_of(seed, "lora"))
        inject_adapter_in_model(config, backbone)
    _replace(backbone, {layer.get_base_layer(): layer for layer in _layers(backbone)})
    only_adapters(backbone)


def only_adapters(backbone: Backbone) -> None:
    """Let adapters alone learn."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(_MARK in name)


def merge(backbone: Backbone) -> None:
    """Add what adapters learnt to the weights they are beside, and take them out: a plain network is left."""
    layers = _layers(backbone)
    for layer in layers:
        layer.merge()
    _replace(backbone, {layer: layer.get_base_layer() for layer in layers})


def _layers(backbone: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in backbone.modules() if isinstance(module, LoraLayer)]


def _replace(backbone: nn.Module, new: dict[Any, nn.Module]) -> None:
    """Exchange modules under every name that they have, but not inside what takes their place."""
    inside = set(new.values())
    for parent in list(backbone.modules()):
        if parent not in inside:
            for name, child in parent._modules.items():
                if child in new:
                    parent._modules[name] = new[child]
