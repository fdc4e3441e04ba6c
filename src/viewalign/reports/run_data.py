"""The contents of a run's folder, read once, with a message for everything unreadable."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.training import pictures
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import RunFolder, no_run, read_config_text, read_log

Array = NDArray[np.generic]
Row = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """A figure over the steps of a run; values may be non-finite."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self.steps)

    @property
    def last(self) -> float:
        """The latest value."""
        return self.values[-1]

    def finite(self) -> Series:
        """Return the series without non-finite values."""
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        return Series(tuple(s for s, _ in kept), tuple(v for _, v in kept))


@dataclass(frozen=True)
class RunRecord:
    """The data of a run's page.

    Attributes:
        name: the folder's name.
        config: the resolved recipe, as plain data, so that recipes of other versions can be shown.
        rows: of `log.jsonl`.
        saved: steps of existing checkpoints.
        pictures: arrays for the pictures; empty without any.
        probe: the probe's result; empty without one.
        note: on the data.
        damaged: a message about the newest checkpoint, if it is damaged.
        problems: messages about unreadable files.
    """

    name: str
    config: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    saved: tuple[int, ...] = ()
    pictures: dict[str, Array] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    damaged: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def of(self, kind: str) -> Iterator[Row]:
        """Yield the rows of a kind."""
        return (row for row in self.rows if row.get("kind") == kind)

    def events(self, event: str) -> list[Row]:
        """Return the events of a kind."""
        return [row for row in self.of("event") if row.get("event") == event]

    def series(self, kind: str, key: str) -> Series:
        """Return a figure over the steps; empty if the run does not have it."""
        found = [(int(row["step"]), float(row[key])) for row in self.of(kind) if _is_number(row.get(key))]
        return Series(tuple(s for s, _ in found), tuple(v for _, v in found))

    def keys(self, kind: str) -> list[str]:
        """Return the names of the figures in rows of a kind, in their order."""
        names = {key: None for row in self.of(kind) for key, value in row.items() if _is_number(value)}
        return [name for name in names if name != "step"]

    @property
    def facts(self) -> Row:
        """The facts about the run's data in the log."""
        return next(self.of("data"), {})

    @property
    def steps(self) -> int:
        """The number of steps of the complete run; 0 if unknown."""
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else 0

    @property
    def step(self) -> int:
        """The last known step of the run."""
        return max([*(int(row.get("step", 0)) for row in self.rows), *self.saved], default=0)

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return 0 < self.steps <= self.step


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def setting(config: dict[str, Any], path: str, default: Any = None) -> Any:
    """Return a setting by its dotted name, or the default if the recipe has none."""
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


def read_run(root: Path, verify: bool = True) -> RunRecord:
    """Read a run's folder.

    Args:
        root: the folder.
        verify: whether to compare the newest checkpoint with its checksum, which reads all of it.

    Raises:
        UserError: the folder contains no run, or its files are unreadable.
    """
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise no_run(root)
    try:
        config = read_config_text(folder.config)
        rows = read_log(folder.log)
    except (yaml.YAMLError, ValueError, OSError) as problem:
        raise UserError(f"The run in {root} cannot be read: {problem}") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder.config} does not contain settings.")
    problems: list[str] = []
    note = root / "data_note.txt"
    saved = tuple(checkpoints.steps(folder.checkpoints))
    newest = checkpoints.path_of(folder.checkpoints, saved[-1]) if saved else None
    reason = checkpoints.damage(newest) if newest and verify else None
    return RunRecord(
        name=root.resolve().name,
        config=config,
        rows=rows,
        saved=saved,
        pictures=_pictures(folder.pictures, problems),
        probe=_probe(root / "probe.json", problems),
        note=note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else "",
        damaged=(f"The checkpoint of step {saved[-1]:,} is damaged: {reason}.",) if reason else (),
        problems=tuple(problems),
    )


def _pictures(path: Path, problems: list[str]) -> dict[str, Array]:
    if not path.is_file():
        return {}
    try:
        return pictures.read(path)
    except Exception as problem:
        # A damaged archive raises anything from BadZipFile to EOFError; the page is useful without pictures.
        problems.append(f"{path.name} cannot be read ({type(problem).__name__}), so that the page has no pictures.")
        return {}


def _probe(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        for name in ("pretrained", "untrained"):
            float(result[name])
    except (ValueError, KeyError, TypeError) as problem:
        problems.append(f"{path.name} cannot be read ({type(problem).__name__}), so that the page has no probe.")
        return {}
    whole: dict[str, Any] = result
    return whole
