"""Which settings a method reads: each method's file says it beside its `build`, as `READS = named(...)`.

Most settings are read for every method: where views lie, how they look, optimizer, schedule, machine. Those of
`OPTIONAL` are not, and one that the chosen method does not read is refused or told of (`recipes/unused.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import get_args

from pydantic import BaseModel

from viewalign.config import Recipe
from viewalign.networks import heads
from viewalign.networks.backbone import Backbone
from viewalign.networks.registry import build_backbone

_PLACES = ("geometry", "views.overlap", "views.independent", "masking", "heads", "objectives", "teacher")


def setting_names(model: type[BaseModel], prefix: str = "", groups: bool = False) -> Iterator[str]:
    """Yield the dotted name of every setting of a model, and with `groups` those of its groups too."""
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        kinds = (field.annotation, *get_args(field.annotation))
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if groups or not below:
            yield path
        for kind in below:
            yield from setting_names(kind, path + ".", groups)


def _under(places: Iterable[str], known: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    for place in places:
        below = {name for name in known if name == place or name.startswith(f"{place}.")}
        if not below:
            raise ValueError(f"there is no setting or group '{place}' that a method may read")
        found |= below
    return frozenset(found)


OPTIONAL = _under(_PLACES, list(setting_names(Recipe)))
"""Settings that some methods read and others do not."""


def used_settings(*places: str) -> frozenset[str]:
    """Return the settings of `OPTIONAL` that are named, singly (`heads.width`) or as a group (`masking`).

    Raises:
        ValueError: a name of which there is none.
    """
    return _under(places, OPTIONAL)


PAIRS = used_settings("views.overlap", "views.independent")
"""What is read where views are drawn as overlapping pairs (`views.drawing.draw_pair`)."""


def summary(reads: frozenset[str]) -> list[str]:
    """Write settings down shortly, whole groups by their names, in the order of a recipe."""
    short: list[str] = []
    for place in _PLACES:
        below = used_settings(place)
        short += [place] if below <= reads else [name for name in setting_names(Recipe) if name in below & reads]
    return short


_ENOUGH = 8
"""Below so many pooled vectors, batch statistics say more about chance than about images."""


NORM = used_settings("heads.norm")
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
