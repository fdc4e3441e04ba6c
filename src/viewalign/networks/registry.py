"""From a network's name to a backbone."""

from __future__ import annotations

from viewalign.errors import UserError
from viewalign.networks import primus, resenc
from viewalign.networks.backbone import Backbone, Size


def network_names() -> list[str]:
    """Return every name that `network=` takes."""
    return sorted([*resenc.ARCHITECTURES, *primus.ARCHITECTURES])


def build_backbone(
    name: str, size: Size, channels: int = 1, block: Size = (16, 16, 16), drop_path: float = 0.0
) -> Backbone:
    """Build a backbone for views of `size` voxels.

    Args:
        name: one of `network_names()`.
        size: (D, H, W) of the views.
        channels: image channels.
        block: masked blocks of a CNN, in voxels; Primus masks its own tokens.
        drop_path: stochastic depth of a transformer.

    Raises:
        UserError: an unknown name, or a view size that the network cannot take.
    """
    if name in resenc.ARCHITECTURES:
        backbone: Backbone = resenc.ResEncBackbone(name, channels, block)
    elif name in primus.ARCHITECTURES:
        try:
            return primus.PrimusBackbone(name, size, channels, drop_path)
        except ValueError as problem:
            raise UserError(str(problem)) from None
    else:
        raise UserError(f"There is no network '{name}'; there are {', '.join(network_names())}.")
    try:
        backbone.check_size(size)
    except ValueError as problem:
        raise UserError(str(problem)) from None
    return backbone
