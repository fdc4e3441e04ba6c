"""Fine-tuning of few parameters of an encoder: low-rank adapters by peft, or its norms and biases.

Modes: `lora` (Hu et al., arXiv:2106.09685); `dora`, which learns the magnitude of each weight vector apart from its
direction (Liu et al., arXiv:2402.09353); `norms`, the one-dimensional parameters: scales and shifts of norms, biases,
and layer scales (BitFit, Ben Zaken et al., arXiv:2106.10199).
"""

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
LOW_RANK = ("lora", "dora")
MODES = (*LOW_RANK, "norms")


def attach(backbone: Backbone, mode: str, rank: int, alpha: float, dropout: float, seed: int) -> None:
    """Insert the adapters of `lora` or `dora`, which initially do not change outputs.

    Args:
        backbone: freshly built.
        mode: of `LOW_RANK`.
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
        raise missing(f"mode={mode} needs peft", "lora") from None
    layers = _RESENC_LAYERS if isinstance(backbone, ResEncBackbone) else _PRIMUS_LAYERS
    # peft is annotated with an int, but only divides alpha by the rank.
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=layers,
        use_dora=mode == "dora",
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(config, backbone)
    _replace(backbone, {layer.get_base_layer(): layer for layer in _lora_layers(backbone)})


def train_few(backbone: Backbone, mode: str) -> None:
    """Freeze all parameters but those that a mode of `MODES` trains."""
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(parameter.ndim == 1 if mode == "norms" else _ADAPTER_NAME in name)


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
