"""Settings without effect: those that a recipe's method, network or optimizer does not use.

On a command line or in a call they are errors; in a user's recipe file they cause a warning. They are reset to their
defaults, so that equivalent recipes are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods import registry
from viewalign.methods.requirements import OPTIONAL

_OPTIMIZERS = {"momentum": "sgd", "betas": "adamw"}
"""Settings of `optim` that only one optimizer uses."""

_ALTERNATIVES: dict[str, tuple[str, set[Any]]] = {
    "masking.whole": ("masking.ratio", {0.0}),
    "heads.width": ("heads.projector", {"none"}),
    "heads.predictor_width": ("heads.projector", {"none"}),
    "heads.norm": ("heads.projector", {"none"}),
    "objectives.huber_delta": ("objectives.reconstruction", {"mse"}),
    "objectives.negatives": ("objectives.consistency", {"cosine", "gram"}),
    "pretext.center_momentum": ("pretext.targets", {"sinkhorn"}),
    "pretext.sinkhorn_iterations": ("pretext.targets", {"centering"}),
}
"""Settings without effect where another setting has one of these values."""


def unread(recipe: Recipe) -> dict[str, str]:
    """Return the dotted names of settings without effect in a recipe, each with the reason."""
    method, network, optimizer = recipe.method, recipe.network.name, recipe.optim.name
    found = dict.fromkeys(OPTIONAL - registry.used_settings_of(method), f"method={method} does not use it")
    if network.startswith("primus"):
        found.setdefault("masking.block", f"network={network} masks whole tokens")
    if network.startswith("resenc"):
        found["network.drop_path"] = f"network={network} has no stochastic depth"
    for name, reader in _OPTIMIZERS.items():
        if optimizer != reader:
            found[f"optim.{name}"] = f"optim.name={optimizer} does not use it; {reader} does"
    for key, (other, values) in _ALTERNATIVES.items():
        if key not in found and other not in found and (value := value_of(recipe, other)) in values:
            found[key] = f"{other}={value} does not use it"
    return found


def refuse_unread(recipe: Recipe, given: Iterable[str]) -> None:
    """Reject requested settings that have no effect.

    Args:
        recipe: the resulting recipe.
        given: dotted names of the requested settings.

    Raises:
        UserError: one of them is not used; the message names the methods that use it.
    """
    idle = unread(recipe)
    for key in given:
        if key in idle:
            raise UserError(f"{_sentence(key, idle[key])} Remove it.")


def idle_sentences(recipe: Recipe, given: Iterable[str], source: str) -> Iterator[str]:
    """Yield a message for each setting of a file that has no effect and is not at its default."""
    idle, plain = unread(recipe), _plain(recipe)
    for key in given:
        if key in idle and value_of(recipe, key) != value_of(plain, key):
            yield f"{source}: {_sentence(key, idle[key])}"


def settled(recipe: Recipe) -> Recipe:
    """Return a recipe whose unused settings are at their defaults."""
    tree, plain, changed = recipe.model_dump(by_alias=True), _plain(recipe), False
    for key in unread(recipe):
        default = value_of(plain, key)
        if value_of(recipe, key) != default:
            group, changed = tree, True
            *parents, last = key.split(".")
            for parent in parents:
                group = group[parent]
            group[last] = default
    return Recipe.model_validate(tree) if changed else recipe


def read_alone(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data without settings that have no effect."""
    idle = unread(recipe)
    return _without(recipe.model_dump(mode="json", by_alias=True), idle, "")


def value_of(recipe: Recipe, key: str) -> Any:
    """Return a setting by its dotted name; None for one of `pretext` that the method does not have."""
    value: Any = recipe
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value


def _plain(recipe: Recipe) -> Recipe:
    """Return the defaults of all settings, those of the recipe's method included."""
    return Recipe(pretext=registry.resolve_method_settings(recipe.method, {}))


def _without(tree: dict[str, Any], idle: Iterable[str], prefix: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        if key in idle:
            continue
        kept = _without(value, idle, f"{key}.") if isinstance(value, dict) else value
        if kept != {} or value == {}:
            out[name] = kept
    return out


def _sentence(key: str, reason: str) -> str:
    readers = registry.methods_using(key) if reason.startswith("method=") else []
    who = f"; {', '.join(readers)} {'do' if len(readers) > 1 else 'does'}" if readers else ""
    return f"{key} has no effect here: {reason}{who}."
