"""Low-rank adapters (LoRA, Hu et al., arXiv:2106.09685) in an encoder, by peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from viewalign.networks.backbone import Backbone
from viewalign.networks.resenc import ResEncBackbone
from viewalign.utils.extras import missing
from viewalign.utils.rng import derive_seed

_PRIMUS_LAYERS = r"net\.eva\.blocks\.\d+\.attn\.(q_proj|k_proj|v_proj|proj)"
_RESENC_LAYERS = r"net\.encoder\.stages\..*\.conv[12]\.conv"
_ADAPTER_NAME = ".lora_"


def attach(backbone: Backbone, rank: int, alpha: float, dropout: float, seed: int) -> None:
    """Insert adapters, which initially do not change outputs, and freeze all other parameters.

    Args:
        backbone: freshly built.
        rank: of each adapter.
        alpha: adapters are scaled by `alpha / rank`.
        dropout: before each adapter, in training.
        seed: of the random factors of the adapters; the others are 0.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise missing("mode=lora needs peft", "lora") from None
    layers = _RESENC_LAYERS if isinstance(backbone, ResEncBackbone) else _PRIMUS_LAYERS
    # peft is annotated with an int, but only divides alpha by the rank.
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)  # type: ignore[arg-type]
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(config, backbone)
    _replace(backbone, {layer.get_base_layer(): layer for layer in _lora_layers(backbone)})
    train_adapters_only(backbone)


def train_adapters_only(backbone: Backbone) -> None:
    """Freeze all parameters but those of adapters."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(_ADAPTER_NAME in name)


def merge(backbone: Backbone) -> None:
    """Add adapters to the weights of their layers and remove them."""
    layers = _lora_layers(backbone)
    for layer in layers:
        layer.merge()
    _replace(backbone, {layer: layer.get_base_layer() for layer in layers})


def _lora_layers(backbone: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in backbone.modules() if isinstance(module, LoraLayer)]


def _replace(backbone: nn.Module, replacements: dict[Any, nn.Module]) -> None:
    """Replace modules under all their names, except inside the replacements."""
    inside = set(replacements.values())
    for parent in list(backbone.modules()):
        if parent not in inside:
            for name, child in parent._modules.items():
                if child in replacements:
                    parent._modules[name] = replacements[child]
