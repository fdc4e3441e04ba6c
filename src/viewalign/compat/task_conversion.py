"""What every layout's reader gives, and how a task's kind is told from its labels."""

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

_MANY = 20
"""More whole numbers than this are a regression's, unless the kind is given."""


class ConvertSettings(Settings):
    """Conversion."""

    kind: Kind | None = Field(None, description="Kind of the task; null: inferred from the labels.")
    target: str = Field("", description="BIDS: the column of participants.tsv with the labels.")
    channels: Names = Field((), description="Channels, as T1w,FLAIR or swi|t2s; empty for all that there are.")
    task: Literal[1, 3] | None = Field(None, description="FOMO: 1 (infarct) or 3 (age).")


@dataclass(frozen=True)
class FoundTask:
    """A task as found; `left_out` says of each case that was not taken why."""

    spec: TaskSpec
    cases: list[TaskCase]
    left_out: list[str] = field(default_factory=list)


def channel_specs(words: Sequence[str], optional: bool = False) -> list[ChannelSpec]:
    """Read channels from words such as `T1w` or `swi|t2s`."""
    split = [[part.strip() for part in word.split("|") if part.strip()] for word in words]
    return [ChannelSpec(name=parts[0], aliases=tuple(parts[1:]), optional=optional) for parts in split if parts]


def make_spec(name: str, channels: Sequence[ChannelSpec], labels: Iterable[Any], kind: Kind | None) -> TaskSpec:
    """Make a task of its labels: lists are multilabel, words or few whole numbers classes, all else a regression."""
    values = [label for label in labels if label is not None and label != ""]
    kind = kind or _kind_of(values)
    return check_spec(
        {
            "name": name,
            "kind": kind,
            "channels": [one.model_dump() for one in channels],
            "classes": _classes(values, kind),
        },
        name,
    )


def _kind_of(values: Sequence[Any]) -> Kind:
    if any(isinstance(value, list) for value in values):
        return "multilabel"
    numbers = [_as_number(value) for value in values]
    if all(number is not None for number in numbers):
        whole = all(number is not None and number == int(number) for number in numbers)
        if not whole or len(set(numbers)) > _MANY:
            return "regression"
    return "binary" if len({str(value) for value in values}) == 2 else "multiclass"


def _classes(values: Sequence[Any], kind: Kind) -> list[str]:
    if kind == "regression":
        return []
    if kind == "multilabel":
        return [str(k) for k in range(max((len(value) for value in values), default=0))]
    numbers = {_as_number(value) for value in values}
    if None in numbers:
        return sorted({str(value) for value in values})
    top = max((int(number) for number in numbers if number is not None), default=0)
    return [str(k) for k in range(top + 1)]


def _as_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def target_of(label: Any, spec: TaskSpec) -> Target | None:
    """Read a label of a JSON file or table; a multilabel one is a list of 0 and 1 there."""
    if spec.kind == "multilabel" and isinstance(label, list):
        return tuple(int(bool(part)) for part in label)
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
    """Return in which fold each case is judged; empty where the validation sets do not hold each case exactly once."""
    where: dict[str, int] = {}
    for number, split in enumerate(splits):
        for name in split.get("val", ()):
            if name in where:
                return {}
            where[name] = number
    return where if set(names) <= set(where) else {}
