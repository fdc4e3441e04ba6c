"""Create tasks from labels: kind and classes are detected unless set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from viewalign.errors import UserError
from viewalign.tasks.manifest import Target, TaskCase, parse_target
from viewalign.tasks.spec import ChannelSpec, Kind, TaskSpec, check_spec
from viewalign.utils.settings import Names, Settings

_MAX_CLASSES = 20
"""More different integers than this are the targets of a regression, unless the kind is set."""


class ConvertSettings(Settings):
    """Conversion."""

    kind: Kind | None = Field(None, description="Kind of the task; null: inferred from the labels.")
    target: str = Field("", description="BIDS: the column of participants.tsv with the labels.")
    channels: Names = Field((), description="Channels, as T1w,FLAIR or swi|t2s; empty for all.")
    task: Literal[1, 3, 5] | None = Field(None, description="FOMO: 1 (infarct), 3 (age) or 5 (polymicrogyria).")


@dataclass(frozen=True)
class FoundTask:
    """A converted task; `left_out` has a message for each excluded case."""

    spec: TaskSpec
    cases: list[TaskCase]
    left_out: list[str] = field(default_factory=list)


def channel_specs(words: Sequence[str], optional: bool = False) -> list[ChannelSpec]:
    """Parse channels such as `T1w` or `swi|t2s`."""
    split = [[part.strip() for part in word.split("|") if part.strip()] for word in words]
    return [ChannelSpec(name=parts[0], aliases=tuple(parts[1:]), optional=optional) for parts in split if parts]


def make_spec(name: str, channels: Sequence[ChannelSpec], labels: Iterable[Any], kind: Kind | None) -> TaskSpec:
    """Create a task from its labels: lists are multilabel, words or few integers classes, others a regression."""
    values = [label for label in labels if label is not None and label != ""]
    kind = kind or _kind_of(values)
    tree = {
        "name": name,
        "kind": kind,
        "channels": [c.model_dump() for c in channels],
        "classes": _classes(values, kind),
    }
    return check_spec(tree, name)


def _kind_of(values: Sequence[Any]) -> Kind:
    if any(isinstance(value, list) for value in values):
        return "multilabel"
    numbers = [_as_number(value) for value in values]
    if all(number is not None for number in numbers):
        whole = all(number is not None and number == int(number) for number in numbers)
        if not whole or len(set(numbers)) > _MAX_CLASSES:
            return "regression"
    return "binary" if len({str(value) for value in values}) == 2 else "multiclass"


def _classes(values: Sequence[Any], kind: Kind) -> list[str]:
    if kind == "regression":
        return []
    if kind == "multilabel":
        return [str(k) for k in range(max((len(value) for value in values), default=0))]
    numbers = [_as_number(value) for value in values]
    if None in numbers:
        return sorted({str(value) for value in values})
    return [f"{number:g}" for number in sorted({number for number in numbers if number is not None})]


def _as_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def target_of(label: Any, spec: TaskSpec) -> Target | None:
    """Read a label of a JSON file or table, in which a multilabel target is a list of 0 and 1."""
    if spec.kind == "multilabel" and isinstance(label, list):
        return tuple(int(bool(part)) for part in label)
    if isinstance(label, bool):  # of JSON
        label = int(label)
    return parse_target(label, spec)


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{file} cannot be read: {problem}.") from None


def folds_of(splits: Sequence[Mapping[str, Sequence[str]]], names: Iterable[str]) -> dict[str, int]:
    """Return the fold of each case; empty unless each case is in exactly one validation set."""
    folds: dict[str, int] = {}
    for number, split in enumerate(splits):
        for name in split.get("val", ()):
            if name in folds:
                return {}
            folds[name] = number
    return folds if set(names) <= set(folds) else {}
