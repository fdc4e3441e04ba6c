"""Load a checked `Recipe` from a recipe's name and `key=value` overrides, with messages for invalid values."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods import registry
from viewalign.recipes.unused import idle_sentences, read_alone, refuse_unread, settled
from viewalign.utils.overrides import closest, format_validation_error, iter_nested, read_override
from viewalign.utils.settings import absolute_paths, merged, parse_yaml, read_yaml, setting_names, suggest, with_home
from viewalign.utils.settings_description import commented_yaml

_log = logging.getLogger(__name__)

_SHORTHANDS = {"network": "network.name", "init": "init.weights"}
"""Keys that accept a plain name although they are a group."""


def names() -> list[str]:
    """Return the sorted names of the recipes of the package."""
    folder = resources.files("viewalign.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


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
        name_or_path: see `names`, or a YAML file.
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
    """Read a recipe and its bases; return the settings, and those among them from the user's files.

    Paths in a user's file are relative to that file.
    """
    tree: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for each, file in read_chain(name_or_path, "recipe", names(), resources.files("viewalign.recipes")):
        settings = each if file is None else absolute_paths(each, Recipe, file.parent)
        tree, own = merged(tree, settings), merged(own, settings) if file else {}
    return tree, own


_BASE = re.compile(r"_[A-Za-z0-9][A-Za-z0-9_.+-]*")
"""Files of the package that only serve as a base of others."""


def read_chain(
    name_or_path: str, kind: Literal["recipe", "study"], known: Sequence[str], folder: Traversable
) -> list[tuple[dict[str, Any], Path | None]]:
    """Read a YAML file, its base (`base`), the base of that, and so on.

    Args:
        name_or_path: a file of the package, or a user's YAML file.
        kind: its name in messages.
        known: names of the package's files.
        folder: of the package's files.

    Returns:
        Settings, the deepest base first, each with its path if it is a user's file.

    Raises:
        UserError: there is no such file, it contains no settings, or it is based on itself.
    """
    chain: list[tuple[dict[str, Any], Path | None]] = []
    above: list[str] = []
    name: str | None = name_or_path
    while name is not None:
        if name in above:
            raise UserError(f"The {kind} {name} is based on itself ({' → '.join([*above, name])}).")
        above.append(name)
        path = Path(name)
        mine = path.suffix in {".yaml", ".yml"} and path.is_file()
        packaged = folder.joinpath(f"{name}.yaml")
        if not (mine or name in known or (_BASE.fullmatch(name) and packaged.is_file())):
            raise UserError(_unknown(name, kind, known))
        tree = read_yaml(path) if mine else parse_yaml(packaged.read_text(encoding="utf-8"), name)
        if not tree:
            raise UserError(f"{name} has no settings. Name at least what it is based on, such as base: {known[0]}.")
        base = tree.pop("base", None)
        chain.insert(0, (tree, path if mine else None))
        name = str(base) if base else None
        if mine and name and Path(name).suffix in {".yaml", ".yml"}:
            name = str(path.parent / with_home(name))
    return chain


def _unknown(name: str, kind: Literal["recipe", "study"], known: Sequence[str]) -> str:
    """Return the message for a name that is neither a file nor one of the package's."""
    if (Path(name) / "config.yaml").is_file():
        return f"{name} is a run. Resume or repeat it by its recipe, {name}/config.yaml."
    if (Path(name) / "store.json").is_file():
        return f"{name} is a store, not a {kind}. The {kind} is the first argument, the store the second."
    if Path(name).is_file() and name not in known:
        return f"{name} is no {kind}: the name of its file must end in .yaml or .yml."
    if Path(name).suffix in {".yaml", ".yml"} or Path(name).name != name:
        return f"{name} is a folder, not a {kind}." if Path(name).is_dir() else f"There is no file {name}."
    listing = {"recipe": "viewalign recipes", "study": "viewalign study --list"}[kind]
    return f"There is no {kind} '{name}'{closest(name, known)}. `{listing}` lists them; name a YAML file by its path."


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


def headline(name: str) -> str:
    """Return the first line of a recipe, a comment that describes it."""
    text = resources.files("viewalign.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("#").strip()
