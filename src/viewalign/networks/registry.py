"""From a network's name to a backbone."""

from __future__ import annotations

from torch import nn

from viewalign.errors import UserError
from viewalign.networks.architectures import PRIMUS, RESENC
from viewalign.networks.backbone import Backbone, Size


def network_names() -> list[str]:
    """Return every name that `network=` takes."""
    return sorted([*RESENC, *PRIMUS])


def build_backbone(
    name: str,
    size: Size,
    channels: int = 1,
    block: Size = (16, 16, 16),
    drop_path: float = 0.0,
    key: str = "views.size",
) -> Backbone:
    """Build a backbone for views of `size` voxels.

    Args:
        name: one of `network_names()`.
        size: (D, H, W) of the views.
        channels: image channels.
        block: masked blocks of a CNN, in voxels; Primus masks its own tokens.
        drop_path: stochastic depth of a transformer.
        key: the setting that says the size, for messages.

    Raises:
        UserError: an unknown name, or a view size that the network cannot take.
    """
    if name in RESENC:
        from viewalign.networks.resenc import ResEncBackbone

        backbone: Backbone = ResEncBackbone(name, channels, block)
    elif name in PRIMUS:
        from viewalign.networks.primus import PrimusBackbone  # brings timm along: seconds

        try:
            return PrimusBackbone(name, size, channels, drop_path, key)
        except ValueError as problem:
            raise UserError(str(problem)) from None
    else:
        raise UserError(f"There is no network '{name}'; there are {', '.join(network_names())}.")
    try:
        backbone.check_size(size, key)
    except ValueError as problem:
        raise UserError(str(problem)) from None
    return backbone


def build_plain(name: str, size: Size) -> nn.Module:
    """Build the network that a name stands for as dynamic-network-architectures has it, for one channel and class."""
    network: nn.Module
    if name in RESENC:
        from viewalign.networks.resenc import build_unet

        network = build_unet(name, 1, 1)
    else:
        from viewalign.networks.primus import build_primus

        network = build_primus(name, 1, 1, size)
    return network
