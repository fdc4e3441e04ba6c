"""From a recipe to the parts that methods share."""

from __future__ import annotations

from functools import partial

from viewalign.config import Recipe
from viewalign.methods.reading import named
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone

_ENOUGH = 8
"""Below so many pooled vectors, batch statistics say more about chance than about images."""


NORM = named("heads.norm")
"""What `norm_for` reads."""


def build_for(recipe: Recipe, masked: bool = False) -> Backbone:
    """Build the backbone of a recipe; `masked` where blocks of views are hidden from it (it reads `masking.block`).

    Raises:
        UserError: an unknown network, or a view size that it cannot take.
    """
    network = recipe.network
    build = partial(build_backbone, network.name, recipe.views.size, network.channels, drop_path=network.drop_path)
    return build(block=recipe.masking.block) if masked else build()


def norm_for(recipe: Recipe, vectors: int) -> heads.Norm:
    """Return how heads normalise that see so many pooled vectors of a global batch together."""
    norm = recipe.heads.norm
    if norm == "auto":
        return "batch" if vectors >= _ENOUGH else "layer"
    return norm
