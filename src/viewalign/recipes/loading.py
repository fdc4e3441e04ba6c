"""Load a checked `Recipe` from a recipe's name and `key=value` overrides, with messages for invalid values."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods import registry
from viewalign.recipes.files import RECIPES
from viewalign.recipes.unused import idle_sentences, read_alone, refuse_unread, settled
from viewalign.utils.overrides import format_validation_error, iter_nested, read_override
from viewalign.utils.settings import merged, nested, setting_names, suggest
from viewalign.utils.settings_description import commented_yaml

_log = logging.getLogger(__name__)

_SHORTHANDS = {"network": "network.name", "init": "init.weights"}
"""Keys that accept a plain name although they are a group."""


def load(
    name_or_path: str,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    *,
    common: Sequence[str] = (),
    warn: bool = False,
) -> Recipe:
    """Read a recipe by name or path, apply `key=value` overrides in order, then plain settings, and check every value.

    Args:
        name_or_path: see `RECIPES.names`, or a YAML file.
        overrides: as on a command line.
        settings: the same as values, by dotted key (`{"optim.lr": 1e-3}`) or in groups (`{"optim": {"lr": 1e-3}}`).
        common: overrides for several recipes, applied first; settings that this recipe does not use are ignored.
        warn: whether to log a warning for each setting of the user's recipe file that has no effect.

    Raises:
        UserError: unknown recipe, unknown key (with the closest match), a value that does not fit, or an override that
            the recipe's method, network or optimizer does not use.
    """
    tree, own = _read(name_or_path)
    _lay(tree, [read_override(one) for one in common])
    recipe = _settle(tree, [read_override(one) for one in overrides], settings or {}, name_or_path)
    if warn:
        stated = [key for key, _ in _flat(own, _known(recipe.method))]
        for sentence in idle_sentences(recipe, stated, name_or_path):
            _log.warning("%s", sentence)
    return settled(recipe)


def change(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other settings; see `load`."""
    return settled(_settle(recipe.model_dump(mode="json", by_alias=True), [], settings, "the recipe"))


def _settle(tree: dict[str, Any], pairs: Sequence[tuple[str, Any]], settings: Mapping[str, Any], source: str) -> Recipe:
    """Merge overrides into a tree, check it, and reject overrides without effect."""
    given = _lay(tree, pairs, settings)
    recipe = _checked(tree, source)
    refuse_unread(recipe, given)
    return recipe


def _lay(
    tree: dict[str, Any], pairs: Sequence[tuple[str, Any]], settings: Mapping[str, Any] | None = None
) -> list[str]:
    """Merge overrides, then settings, into a tree; return the names of all single settings among them."""
    settings = settings or {}
    method = dict(pairs).get("method", tree.get("method", Recipe().method))
    known = _known(str(settings.get("method", method)))
    given = [*pairs, *_flat(settings, known)]
    for key, value in given:
        _put(tree, key, value, known)
    return [name for key, value in given for name, _ in _flat({key: value}, known)]


def _flat(settings: Mapping[str, Any], known: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Flatten groups to settings; a mapping without settings below it is a value."""
    for key, value in iter_nested(settings, lambda group: not any(other.startswith(f"{group}.") for other in known)):
        yield key, _plain(value)


def _plain(value: Any) -> Any:
    """Write a value in YAML's form."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _checked(tree: dict[str, Any], source: str) -> Recipe:
    """Convert nested settings to a `Recipe`; `source` names them in messages."""
    named = partial(suggest, known=[*_known(str(tree.get("method", Recipe().method))), "base"])
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as problem:
        raise UserError(f"{source}: {format_validation_error(problem, named)}.") from None
    try:
        pretext = registry.resolve_method_settings(recipe.method, recipe.pretext)
    except ValidationError as problem:
        raise UserError(f"{source}: {format_validation_error(problem, named, 'pretext.')}.") from None
    return recipe.model_copy(update={"pretext": pretext})


def to_yaml(recipe: Recipe, comments: bool = False) -> str:
    """Return all settings that a recipe uses as YAML; the file repeats the run.

    Args:
        recipe: the recipe.
        comments: whether the meaning of each setting is written above it.
    """
    tree = read_alone(recipe)
    if comments:
        return commented_yaml(tree, {"": Recipe, "pretext.": registry.method_settings_model(recipe.method)})
    text: str = yaml.safe_dump(tree, sort_keys=False)
    return text


def _read(name_or_path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a recipe and its bases; return the settings, and those among them from the user's files."""
    tree: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for read, file in RECIPES.read(name_or_path, Recipe):
        settings = _expanded(read)
        tree, own = merged(tree, settings), merged(own, settings) if file else {}
    return tree, own


def _expanded(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with shorthands such as `network: primus-xs` in full, so that settings below them are merged."""
    out = dict(tree)
    for key, name in _SHORTHANDS.items():
        if isinstance(out.get(key), str):
            out[key] = {name.rpartition(".")[2]: out[key]}
    return nested(out)


def _known(method: str) -> list[str]:
    """Return every setting that a recipe of a method may have, by its dotted name."""
    own = setting_names(registry.method_settings_model(method), "pretext.", groups=True)
    return [*setting_names(Recipe, groups=True), *own]


def _put(tree: dict[str, Any], key: str, value: Any, known: Sequence[str]) -> None:
    if key not in known:
        raise UserError(f"There is no setting '{key}'{suggest(key, known)}.")
    *parents, last = _SHORTHANDS.get(key, key).split(".")
    for parent in parents:
        child = tree.get(parent, {})
        bare = _SHORTHANDS.get(parent, parent).rsplit(".", 1)[-1]
        tree[parent] = {bare: child} if isinstance(child, str) else dict(child)
        tree = tree[parent]
    tree[last] = value
