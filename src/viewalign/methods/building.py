"""From a recipe to the parts that methods share."""

from __future__ import annotations

from viewalign.config import Recipe
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone

_ENOUGH = 8
"""Below so many pooled vectors, batch statistics say more about chance than about images."""


def build_for(recipe: Recipe) -> Backbone:
    """Build the backbone of a recipe.

    Raises:
        UserError: an unknown network, or a view size that it cannot take.
    """
    network = recipe.network
    return build_backbone(network.name, recipe.views.size, network.channels, recipe.masking.block, network.drop_path)


def norm_for(recipe: Recipe, vectors: int) -> heads.Norm:
    """Return how heads normalise that see so many pooled vectors of a global batch together."""
    norm = recipe.heads.norm
    if norm == "auto":
        return "batch" if vectors >= _ENOUGH else "layer"
    return norm
