"""YAML whose names stay names: `010`, `12_3`, `1:30`, `2020-01-31`, `no` and `off` are text, as in YAML 1.2."""

from __future__ import annotations

import re
from typing import Any

import yaml

_KINDS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    # `1e-3`, without a point, is text in YAML 1.1, which other programs and our dumper write.
    ("float", r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
)
"""Type, its pattern, and the characters that it can start with."""


class _Loader(yaml.SafeLoader):
    """A safe loader that knows null and `_KINDS`; all else is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, _pattern, _first in _KINDS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def load_yaml(text: str) -> Any:
    """Return the plain values of a YAML document.

    Example:
        >>> load_yaml("[010, 10, no, false, 1.5, 2020-01-31]")
        ['010', 10, 'no', False, 1.5, '2020-01-31']

    Raises:
        yaml.YAMLError: the text is no YAML.
    """
    return yaml.load(text, _Loader)
