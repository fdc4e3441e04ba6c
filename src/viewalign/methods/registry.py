"""From a method's name to the method: one line each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from viewalign.config import Recipe, Settings
from viewalign.errors import UserError
from viewalign.methods.requirements import OPTIONAL

if TYPE_CHECKING:
    from viewalign.methods.base import Method, MethodRequirements


@dataclass(frozen=True)
class Entry:
    """A line of the registry.

    Attributes:
        title: what the method is called.
        paper: where it comes from.
        networks: the families of networks that it trains, by the first word of their names.
        module: its file; it offers `build(recipe)`, and may offer `asks(recipe)`, a settings model `Pretext`, and
            `READS`, which of the settings of `reading.OPTIONAL` it reads.
        status: what it has been through.
    """

    title: str
    paper: str
    networks: tuple[str, ...]
    module: str
    status: str = "tested, compared at small scale"


_BOTH = ("resenc", "primus")

METHODS = {
    "cva": Entry("Consistent View Alignment", "arXiv:2509.13846", _BOTH, "viewalign.methods.cva"),
    "mae": Entry("Masked autoencoder", "arXiv:2111.06377", _BOTH, "viewalign.methods.mae"),
    "simmim": Entry("SimMIM", "arXiv:2111.09886", ("primus",), "viewalign.methods.simmim"),
    "genesis": Entry("Models Genesis", "arXiv:2004.07882", _BOTH, "viewalign.methods.genesis"),
    "fusion": Entry("Volume Fusion", "arXiv:2306.16925", _BOTH, "viewalign.methods.fusion"),
    "simclr": Entry("SimCLR", "arXiv:2002.05709", _BOTH, "viewalign.methods.simclr"),
    "voco": Entry("VoCo", "arXiv:2402.17300", _BOTH, "viewalign.methods.voco"),
    "swinunetr": Entry("SwinUNETR's three tasks", "arXiv:2111.14791", _BOTH, "viewalign.methods.swinunetr"),
    "pcrlv2": Entry("PCRLv2", "arXiv:2301.00772", _BOTH, "viewalign.methods.pcrlv2"),
    "gvsl": Entry("GVSL", "arXiv:2303.00874", _BOTH, "viewalign.methods.gvsl"),
    "spark": Entry("SparK", "arXiv:2301.03580", ("resenc",), "viewalign.methods.spark"),
}
"""Every method by its name."""


def entry_of(method: str) -> Entry:
    """Return a method's line.

    Raises:
        UserError: there is no such method.
    """
    if method not in METHODS:
        raise UserError(f"There is no method '{method}'; there are {', '.join(METHODS)}.")
    return METHODS[method]


def build_method(recipe: Recipe) -> Method:
    """Build the method that a recipe names.

    Raises:
        UserError: there is no such method, or it cannot train the recipe's network.
    """
    entry, network = entry_of(recipe.method), recipe.network.name
    if not network.startswith(entry.networks):
        families = " and ".join(entry.networks)
        raise UserError(f"{entry.title} (method={recipe.method}) trains {families} networks, not network={network}.")
    method: Method = import_module(entry.module).build(recipe)
    return method


def requirements_of(recipe: Recipe) -> MethodRequirements:
    """Return what the recipe's method asks of views; one view of each volume where it says nothing.

    Raises:
        UserError: there is no such method.
    """
    from viewalign.methods.base import MethodRequirements

    module = import_module(entry_of(recipe.method).module)
    requirements: MethodRequirements = (
        module.requirements(recipe) if hasattr(module, "requirements") else MethodRequirements()
    )
    return requirements


def used_settings_of(method: str) -> frozenset[str]:
    """Return which settings of `reading.OPTIONAL` a method reads; all where there is no such method."""
    if method not in METHODS:
        return OPTIONAL
    reads: frozenset[str] = getattr(import_module(METHODS[method].module), "USED_SETTINGS", frozenset())
    return reads


def methods_using(setting: str) -> list[str]:
    """Return the methods that read a setting."""
    return [method for method in METHODS if setting not in OPTIONAL or setting in used_settings_of(method)]


def method_settings_model(method: str) -> type[Settings]:
    """Return the model of a method's own settings; an empty one for a method without any, or one that is not there."""
    if method not in METHODS:
        return Settings
    model: type[Settings] = getattr(import_module(METHODS[method].module), "MethodSettings", Settings)
    return model


def resolve_method_settings(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Check a method's own settings and fill in their defaults, as plain data.

    Raises:
        pydantic.ValidationError: an unknown key, or a value that does not fit.
    """
    return method_settings_model(method).model_validate(given).model_dump(mode="json")
