"""Descriptions of settings for help, documentation and recipe files: names, accepted values, defaults, meanings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from viewalign.utils.settings import models_in


@dataclass(frozen=True)
class Setting:
    """The documentation of a field.

    Attributes:
        name: dotted.
        group: heading of its group: the first line of the docstring of the model that declares it.
        values: accepted values, in words, such as `> 0` or `sgd | adamw`.
        default: as YAML; empty if a value is required.
        meaning: its description.
        absent: whether its whole group is absent by default.
    """

    name: str
    group: str
    values: str
    default: str
    meaning: str
    absent: bool = False


def describe(model: type[BaseModel], prefix: str = "", absent: bool = False) -> Iterator[Setting]:
    """Yield every setting of a model; groups follow their parent."""
    groups = []
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        below = models_in(field.annotation)
        optional = absent or field.is_required() or field.default is None
        groups += [(kind, f"{path}.", optional) for kind in below]
        if get_origin(field.annotation) is dict:
            groups += [(kind, f"{path}.NAME.", True) for kind in models_in(get_args(field.annotation)[1])]
        if not below:
            owner = next(kind for kind in reversed(model.__mro__) if name in getattr(kind, "model_fields", {}))
            yield Setting(path, _heading(owner), _values(field), _default(field), field.description or "", absent)
    for kind, path, optional in groups:
        yield from describe(kind, path, optional)


def _heading(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n")[0].split(". ")[0].rstrip(".")


def _default(field: FieldInfo) -> str:
    return "" if field.is_required() else in_yaml(field.get_default(call_default_factory=True))


def in_yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


_WORDS = {int: "whole number", float: "number", bool: "true | false", str: "text", Path: "path"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _values(field: FieldInfo) -> str:
    return _limited(_kind(field.annotation), field.metadata)


def _kind(annotation: Any) -> str:
    """Return in words the values that an annotation accepts."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _limited(_kind(inside[0]), inside[1:])
    if origin is Literal:
        return " | ".join(map(str, inside))
    if origin in (Union, UnionType):
        return " | ".join("null" if part is NoneType else _kind(part) for part in inside)
    if origin is tuple:
        each = _kind(inside[0])
        if inside[-1] is Ellipsis:
            return f"list of: {each}"
        return f"{'one or three' if len(inside) == 3 else len(inside)} × {each}"
    return _WORDS.get(annotation, "mapping" if origin is dict or annotation is dict else "value")


def _limited(kind: str, metadata: Sequence[Any]) -> str:
    """Add the limits of a number, such as `0 ≤ number ≤ 1`."""
    parts = [part for one in metadata for part in (*getattr(one, "metadata", ()), one)]
    found = {key: getattr(part, key) for part in parts for key in _SIGNS if getattr(part, key, None) is not None}
    if {"ge", "le"} <= found.keys():
        return f"{kind} from {found['ge']:g} to {found['le']:g}"
    words = [f"{_SIGNS[key]} {found[key]:g}" for key in _SIGNS if key in found]
    return f"{kind} {' and '.join(words)}" if words else kind


def commented_yaml(tree: Mapping[str, Any], models: Mapping[str, type[BaseModel]], prefix: str = "") -> str:
    """Return settings as YAML with the meaning of each as a comment above it.

    Args:
        tree: plain values, in groups.
        models: the model of all settings under "", and of groups that it types as plain mappings.
        prefix: of the keys of `tree`.
    """
    known = {one.name: one for name, model in models.items() for one in describe(model, name)}
    return "".join(_lines(tree, known, prefix))


def _lines(tree: Mapping[str, Any], known: Mapping[str, Setting], prefix: str) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, Mapping) and value and key not in known:
            yield f"{indent}{name}:\n" + "".join(_lines(value, known, f"{key}."))
            continue
        about = known.get(key)
        if about is not None and about.meaning:
            yield f"{indent}# {about.meaning} [{about.values}]\n"
        yield f"{indent}{name}: {in_yaml(value)}\n"
