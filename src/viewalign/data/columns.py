"""The index of a store: one column per property, small enough for hundreds of thousands of images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from viewalign.data.layout import MASK_KINDS, done_properties
from viewalign.utils.io import PARTIAL_PREFIX, raise_unless_missing, write_bytes
from viewalign.utils.text import counted

INDEX_COLUMNS = (
    "id",
    "path",
    "subject",
    "dataset",
    "modality",
    "shape",
    "spacing",
    "foreground_threshold",
    *MASK_KINDS,
)
OPTIONAL_COLUMNS: dict[str, Any] = {"channels": 1, "quality": None, "scale": (1.0,), "offset": (0.0,), "group": None}
"""Columns that are written only if some image differs from this value."""


class TextColumn(Sequence[str]):
    """Many strings in one block of memory, shared by forked workers, as no reference counts are written into it."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8") for text in texts]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, k: int) -> str: ...

    @overload
    def __getitem__(self, k: slice) -> list[str]: ...

    def __getitem__(self, k: int | slice) -> str | list[str]:
        if isinstance(k, slice):
            return [self[n] for n in range(*k.indices(len(self)))]
        index = int(k) + len(self) if k < 0 else int(k)
        if not 0 <= index < len(self):
            raise IndexError(f"there is no entry {k} among {len(self)}")
        return self._bytes[self._ends[index] : self._ends[index + 1]].tobytes().decode("utf-8")

    def __repr__(self) -> str:
        return f"TextColumn({counted(len(self), 'entry', 'entries')})"


@dataclass(frozen=True, slots=True)
class Row:
    """One image's row in the index; `value = stored · scale + offset`, one pair per channel.

    `group` names the subjects that share copies of an image with this one's, None if there are none.
    """

    id: str
    path: str
    subject: str
    dataset: str
    modality: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    foreground_threshold: float
    anonymisation: bool
    anatomy: bool
    channels: int = 1
    quality: float | None = None
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    group: str | None = None

    @property
    def voxels(self) -> int:
        """Voxels of all channels together."""
        return int(np.prod(self.shape)) * self.channels

    @classmethod
    def of(cls, relative: str, properties: dict[str, Any]) -> Row:
        """Create the row of an image from its path in the store and its properties."""
        files = properties["files"]
        return cls(
            id=properties["id"],
            path=relative,
            subject=properties["subject"],
            dataset=properties["dataset"],
            modality=properties["modality"],
            shape=tuple(properties["shape"]),
            spacing=tuple(round(size, 6) for size in properties["spacing"]),
            foreground_threshold=properties["foreground_threshold"],
            anonymisation=".anonymisation.b2nd" in files,
            anatomy=".anatomy.b2nd" in files,
            channels=properties.get("channels", 1),
            quality=properties.get("quality"),
            scale=tuple(properties.get("scale", (1.0,))),
            offset=tuple(properties.get("offset", (0.0,))),
        )


def write_index(store: Path, rows: Iterable[Row]) -> None:
    """Write `index.json`, sorted by id, one line per column."""
    ordered = sorted(rows, key=lambda row: row.id)
    columns = {name: [getattr(row, name) for row in ordered] for name in (*INDEX_COLUMNS, *OPTIONAL_COLUMNS)}
    written = [
        (name, values)
        for name, values in columns.items()
        if name not in OPTIONAL_COLUMNS or any(value != OPTIONAL_COLUMNS[name] for value in values)
    ]
    lines = (f"{json.dumps(name)}: {json.dumps(values, ensure_ascii=False)}" for name, values in written)
    write_bytes(store / "index.json", ("{\n" + ",\n".join(lines) + "\n}\n").encode("utf-8"))


def rows_on_disk(store: Path) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Yield row and properties of every complete image, from any run."""
    for folder, _, files in os.walk(store / "volumes", onerror=raise_unless_missing):
        for name in files:
            if name.endswith(".json") and not name.startswith("."):
                relative = (Path(folder) / name.removesuffix(".json")).relative_to(store).as_posix()
                properties = done_properties(store, relative)
                if properties is not None:
                    yield Row.of(relative, properties), properties


def sweep_temporary(store: Path, below: bool = True) -> None:
    """Remove unfinished files of a killed run in the store's folder and below it."""
    for folder, folders, files in os.walk(store):
        if not below:
            folders.clear()
        for name in files:
            if name.startswith(PARTIAL_PREFIX):
                (Path(folder) / name).unlink(missing_ok=True)
