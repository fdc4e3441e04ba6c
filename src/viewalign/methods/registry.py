"""Pretraining methods by name. A method is one module that offers:

- `build(recipe)`, which returns the `Method`;
- optionally `requirements(recipe)`, a `MethodRequirements` (default: one view per volume);
- optionally `MethodSettings`, the model of its own settings (default: none);
- optionally `USED_SETTINGS`, the settings of `requirements.OPTIONAL` that it uses (default: none).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.requirements import OPTIONAL
from viewalign.utils.overrides import closest
from viewalign.utils.settings import Settings

if TYPE_CHECKING:
    from viewalign.methods.base import Method, MethodRequirements


@dataclass(frozen=True)
class Entry:
    """A registered method.

    Attributes:
        title: name of the method.
        paper: arXiv number of its paper.
        networks: families of networks that it trains, by the first word of their names.
        status: state of validation of the implementation.
    """

    title: str
    paper: str
    networks: tuple[str, ...] = ("resenc", "primus")
    status: str = "tested, compared at small scale"


METHODS = {
    "cva": Entry("Consistent View Alignment", "arXiv:2509.13846"),
    "mae": Entry("Masked autoencoder", "arXiv:2111.06377"),
    "simmim": Entry("SimMIM", "arXiv:2111.09886", ("primus",)),
    "genesis": Entry("Models Genesis", "arXiv:2004.07882"),
    "fusion": Entry("Volume Fusion", "arXiv:2306.16925"),
    "simclr": Entry("SimCLR", "arXiv:2002.05709"),
    "voco": Entry("VoCo", "arXiv:2402.17300"),
    "swinunetr": Entry("SwinUNETR's three tasks", "arXiv:2111.14791"),
    "pcrlv2": Entry("PCRLv2", "arXiv:2301.00772"),
    "gvsl": Entry("GVSL", "arXiv:2303.00874"),
    "spark": Entry("SparK", "arXiv:2301.03580", ("resenc",)),
    "dino": Entry("DINO with iBOT", "arXiv:2104.14294", status="tested, not compared"),
    "dino-cva": Entry("DINO with aligned dense targets", "arXiv:2104.14294", status="tested, not compared"),
}
"""Every method by name, which is also the name of its module in this package, with _ for -."""


def entry_of(method: str) -> Entry:
    """Return a method's entry.

    Raises:
        UserError: there is no such method.
    """
    if method not in METHODS:
        raise UserError(f"There is no method '{method}'{closest(method, METHODS)}; there are {', '.join(METHODS)}.")
    return METHODS[method]


def _attribute(method: str, name: str, default: Any) -> Any:
    """Return an attribute of a method's module, or the default."""
    if method not in METHODS:
        return default
    return getattr(import_module(f"viewalign.methods.{method.replace('-', '_')}"), name, default)


def build_method(recipe: Recipe) -> Method:
    """Build the method of a recipe.

    Raises:
        UserError: there is no such method, or it cannot train the recipe's network.
    """
    entry, network = entry_of(recipe.method), recipe.network.name
    if not network.startswith(entry.networks):
        families = " and ".join(entry.networks)
        raise UserError(f"{entry.title} (method={recipe.method}) trains {families} networks, not network={network}.")
    method: Method = _attribute(recipe.method, "build", None)(recipe)
    return method


def requirements_of(recipe: Recipe) -> MethodRequirements:
    """Return the requirements of the recipe's method for views, volumes and processes.

    Raises:
        UserError: there is no such method.
    """
    from viewalign.methods.base import MethodRequirements

    entry_of(recipe.method)
    requirements: MethodRequirements = _attribute(recipe.method, "requirements", lambda _: MethodRequirements())(recipe)
    return requirements


def used_settings_of(method: str) -> frozenset[str]:
    """Return the settings of `requirements.OPTIONAL` that a method uses; all if there is no such method."""
    used: frozenset[str] = _attribute(method, "USED_SETTINGS", frozenset()) if method in METHODS else OPTIONAL
    return used


def methods_using(setting: str) -> list[str]:
    """Return the methods that use a setting."""
    return [method for method in METHODS if setting not in OPTIONAL or setting in used_settings_of(method)]


def method_settings_model(method: str) -> type[Settings]:
    """Return the model of a method's own settings; an empty one if it has none or does not exist."""
    model: type[Settings] = _attribute(method, "MethodSettings", Settings)
    return model


def resolve_method_settings(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Validate a method's own settings and fill in defaults, as plain data.

    Raises:
        pydantic.ValidationError: an unknown key or an invalid value.
    """
    return method_settings_model(method).model_validate(given).model_dump(mode="json")
