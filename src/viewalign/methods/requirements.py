"""Which settings a method uses, declared in its module as `USED_SETTINGS = used_settings(...)`.

Most settings apply to every method: views, intensity, optimizer, schedule, runtime. Those of `OPTIONAL` do not; a
setting that the selected method does not use is rejected (`recipes/unused.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.networks import heads, masking
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone
from viewalign.utils.settings import setting_names
from viewalign.utils.shapes import Size
from viewalign.utils.text import counted

_OPTIONAL = ("geometry", "views.overlap", "views.independent", "masking", "heads", "objectives", "teacher")


def _select(names: Iterable[str], known: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    for name in names:
        matching = {setting for setting in known if setting == name or setting.startswith(f"{name}.")}
        if not matching:
            raise ValueError(f"there is no setting or group '{name}' among those that only some methods use")
        found |= matching
    return frozenset(found)


OPTIONAL = _select(_OPTIONAL, list(setting_names(Recipe)))
"""Settings that only some methods use."""


def used_settings(*names: str) -> frozenset[str]:
    """Return the settings of `OPTIONAL` of these names (`heads.width`) or groups (`masking`).

    Raises:
        ValueError: there is no such setting or group.
    """
    return _select(names, OPTIONAL)


PAIRS = used_settings("views.overlap", "views.independent")
"""The settings of `sample_pair`."""


def summary(used: frozenset[str]) -> list[str]:
    """Return the names of settings in the order of a recipe, with complete groups by their own names."""
    short: list[str] = []
    for name in _OPTIONAL:
        group = used_settings(name)
        short += [name] if group <= used else [setting for setting in setting_names(Recipe) if setting in group & used]
    return short


_MIN_VECTORS = 8
"""Fewest pooled vectors for which batch statistics are stable enough."""
NORM = used_settings("heads.norm")
"""The settings that `norm_for` uses."""


def build_for(recipe: Recipe, masked: bool = False) -> Backbone:
    """Build the backbone of a recipe, with `masking.block` if its views are `masked`.

    Raises:
        UserError: an unknown network, or a view size that it does not accept.
    """
    network = recipe.network
    build = partial(
        build_backbone, network.name, recipe.views.patch_size, network.channels, drop_path=network.drop_path
    )
    return build(block=recipe.masking.block) if masked else build()


def check_masks(recipe: Recipe, block: Size, instead: str) -> None:
    """Check that `masking.ratio` masks at least one block of a view.

    Args:
        recipe: with the ratio and the size of views.
        block: (D, H, W) of a masked block in voxels.
        instead: the setting without which nothing has to be masked, for the message.

    Raises:
        UserError: it masks none.
    """
    ratio, size = recipe.masking.ratio, recipe.views.patch_size
    blocks = math.prod(masking.block_grid(size, block))
    if masking.count_masked(blocks, ratio) == 0:
        raise UserError(
            f"masking.ratio={ratio:g} masks no block of a view: views.patch_size={list(size)} has "
            f"{counted(blocks, 'block')} of {list(block)}. Raise the ratio, use larger views or smaller blocks "
            f"(masking.block, for a CNN), or set {instead}."
        )


def check_local_views(backbone: Backbone, local: Size, size: Size) -> None:
    """Check the size of local views, which a transformer's positions are resized for.

    Raises:
        UserError: the network does not accept `pretext.local_size`, or it is larger than the views.
    """
    backbone.check_size(local, "pretext.local_size")
    if any(n > limit for n, limit in zip(local, size, strict=True)):
        raise UserError(f"pretext.local_size = {list(local)} is larger than views.patch_size = {list(size)}.")


def norm_for(recipe: Recipe, vectors: int) -> heads.Norm:
    """Return the normalisation of heads for this number of pooled vectors in a global batch."""
    norm = recipe.heads.norm
    if norm == "auto":
        return "batch" if vectors >= _MIN_VECTORS else "layer"
    return norm
