"""Overrides `key=value`, and messages for settings that do not fit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from viewalign.errors import UserError
from viewalign.utils.yaml_values import load_yaml

_SCALARS = {"int", "float", "str", "bool", "none"}
_POWER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")
"""A number such as `1e-3`, which YAML reads as text."""
_LONGEST = 80
"""Longest part of a wrong value that a message repeats, in characters."""
_REASONS = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
    "string": "must be text",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
    "model": "is a group of settings, not a value; write GROUP.SETTING=VALUE",
    "dict": "must be a mapping, such as '{{name: 1}}'",
}
"""What a value must be, by type of pydantic's error without its ending."""


def read_override(text: str, example: str = "optim.lr=0.001") -> tuple[str, Any]:
    """Read `key=value`; the value is YAML, and `1e-3` is a number.

    What is no YAML is text, such as the patterns `*.nii` and `[a-z]+(?P<subject>\\d+)`.

    Raises:
        UserError: no `=`, or no value.
    """
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"'{text}' is not a setting; write key=value, such as {example}.")
    if not value.strip():
        raise UserError(f"'{text}' has no value; write {key}=VALUE without spaces around =, or {key}=null for none.")
    try:
        read = load_yaml(value)
    except yaml.YAMLError:
        return key, value  # an unclosed list is reported where a list is needed
    # Outside lists, mappings and quotes, YAML would cut `run #2` and read `a: b` as a mapping.
    plain = value.lstrip()[0] not in "[{\"'"
    return key, value.strip() if plain and (" #" in value or isinstance(read, dict)) else _number(read)


def set_nested(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested plain values; missing groups are created."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    tree[last] = value


def iter_nested(
    tree: Mapping[str, Any], is_value: Callable[[str], bool] = lambda _: False, before: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield nested settings as dotted key and value; `is_value(key)` keeps a group as one value."""
    for name, value in tree.items():
        key = before + name
        if isinstance(value, Mapping) and not is_value(key):
            yield from iter_nested(value, is_value, f"{key}.")
        else:
            yield key, value


def diff_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, value before and value now of each changed setting; None for a missing one."""
    old, new = dict(iter_nested(before)), dict(iter_nested(now))
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def closest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known dotted key that is most similar to a word, or an empty string."""
    names = [name for name in known if not word.startswith(f"{name}.")]
    alike = [name for name in names if name.lower() == word.lower()]
    if alike:
        return _meant(alike)
    leaf = word.rsplit(".", 1)[-1]
    same_leaf = [name for name in names if name.rsplit(".", 1)[-1] == leaf]
    dotted = any("." in name for name in names)
    return _meant(same_leaf) or similar(word if dotted else leaf, names)


def similar(word: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ` (did you mean 'x'?)` for the name most similar to a word, or an empty string; dots are letters.

    Args:
        word: unknown.
        names: known.
        cutoff: least similarity, from 0 to 1 (`difflib.SequenceMatcher.ratio`).
    """
    return _meant(difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff))


def _meant(found: Sequence[str]) -> str:
    return f" (did you mean '{found[0]}'?)" if found else ""


def format_validation_error(
    problem: ValidationError, suggest: Callable[[str], str], prefix: str = "", tags: Collection[str] = ()
) -> str:
    """Return one sentence per key for a pydantic error.

    Args:
        problem: pydantic's error.
        suggest: returns ` (did you mean 'x'?)` or an empty string for an unknown key.
        prefix: written before every key, such as `--` on a command line.
        tags: tags of pydantic's discriminated unions; they are not part of a key.

    Returns:
        The sentences, joined by `; `. Alternatives for one value are joined by `, or`.
    """
    reasons: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for error in problem.errors():
        key = prefix + _key(error["loc"], tags)
        if error["type"] == "extra_forbidden":
            reason = f"there is no setting '{key}'{suggest(key)}"
        elif error["type"] == "missing":
            reason = f"'{key}' is required"
        else:
            reason = _reason(error)
            values.setdefault(key, error["input"])
        if reason not in reasons.setdefault(key, []):
            reasons[key].append(reason)
    _merge_triples(reasons, values)
    sentences = {key: ", or ".join(texts) for key, texts in reasons.items()}
    unsaid = {key for key in values if not sentences[key].startswith(key)}
    return "; ".join(_with_value(key, text, values[key]) if key in unsaid else text for key, text in sentences.items())


def _merge_triples(reasons: dict[str, list[str]], values: dict[str, Any]) -> None:
    """Replace the same reason about the same value of all three axes, which were written as one number, by one."""
    for first in [key for key in reasons if key.endswith(".0")]:
        root = first.removesuffix(".0")
        axes = [f"{root}.{axis}" for axis in range(3)]
        if all(reasons.get(axis) == reasons[first] and values.get(axis) == values.get(first) for axis in axes):
            reasons[root], values[root] = reasons[first], values.get(first)
            for axis in axes:
                del reasons[axis]
                values.pop(axis, None)


def _reason(error: ErrorDetails) -> str:
    """Return why a value is rejected: in our words for the usual reasons, else in pydantic's or a validator's."""
    kind = error["type"].removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if kind in _REASONS:
        return _REASONS[kind].format(**error.get("ctx", {}))
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _key(loc: tuple[int | str, ...], tags: Collection[str]) -> str:
    """Return the dotted key of an error's location, up to the name of a member of a union."""
    parts = []
    for depth, part in enumerate(map(str, loc)):
        if "[" in part or part in _SCALARS or part.startswith(("function-", "constrained-")):
            break
        if not (depth >= 2 and part in tags):
            parts.append(part)
    return ".".join(parts)


def _with_value(key: str, reason: str, value: object) -> str:
    shown = f"'{value}'" if isinstance(value, str) else str(value)
    between = " " if key.startswith("--") else " = "
    return f"{key}{between}{shown if len(shown) <= _LONGEST else shown[:_LONGEST] + '…'}: {reason}"


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value
