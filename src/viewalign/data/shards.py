"""Parts of a preparation that run at different times or on different machines, and the files that each part leaves."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from viewalign.data.layout import read_json, write_json
from viewalign.data.settings import PrepareSettings
from viewalign.data.sources import Exclusion
from viewalign.errors import UserError

Item = TypeVar("Item")
_FOLDER = "parts"


@dataclass(frozen=True)
class Shard:
    """Part `number` (from 1) of `count`."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`.

        Raises:
            UserError: it is not of that form, or i is not within 1 to n.
        """
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
            raise UserError(f"shard={text}: write i/n with 1 ≤ i ≤ n, such as 3/16 for the third of sixteen parts.")
        return cls(int(match.group(1)), int(match.group(2)))

    @property
    def whole(self) -> bool:
        """Whether it is the only part."""
        return self.count == 1

    @property
    def name(self) -> str:
        """`3-of-16`; empty for the only part."""
        return "" if self.whole else f"{self.number}-of-{self.count}"

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this part's items."""
        return items[self.number - 1 :: self.count]


def work_digest(ids: Iterable[str], settings: PrepareSettings) -> str:
    """Return 16 hex digits that change with the images or settings of a run, of which its parts must be.

    The order of the images counts, since a part is every n-th of them.
    """
    parts = (*ids, settings.model_dump_json())
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def leave_part(store: Path, shard: Shard, work: str, excluded: Sequence[Exclusion]) -> None:
    """Record that a part of a work (see `work_digest`) is done, and its excluded images."""
    content = {"work": work, "excluded": [exclusion.as_json() for exclusion in sorted(set(excluded))]}
    write_json(_path(store, shard), content)


def missing_parts(store: Path, count: int, work: str) -> list[int]:
    """Return the parts of a work that are not done yet."""
    return [n for n in range(1, count + 1) if _excluded(store, Shard(n, count), work) is None]


def excluded_in_parts(store: Path, count: int, work: str) -> list[Exclusion] | None:
    """Return the excluded images of all parts, sorted; None if another part has removed the records meanwhile."""
    found: set[Exclusion] = set()
    for n in range(1, count + 1):
        part = _excluded(store, Shard(n, count), work)
        if part is None:
            return None
        found.update(part)
    return sorted(found)


def _excluded(store: Path, shard: Shard, work: str) -> list[Exclusion] | None:
    """Return the excluded images of a part; None if it is not done, or was of other images or settings."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent, or of an earlier version
        content = read_json(_path(store, shard))
        if content["work"] == work:
            return [Exclusion(entry["file"], entry["reason"]) for entry in content["excluded"]]
    return None


def remove_parts(store: Path) -> None:
    """Remove the records of parts: of this run, and of an earlier one with another count."""
    shutil.rmtree(store / _FOLDER, ignore_errors=True)


def forget_part(store: Path, shard: Shard) -> None:
    """Remove the record of a part, which starts again."""
    _path(store, shard).unlink(missing_ok=True)


def _path(store: Path, shard: Shard) -> Path:
    return store / _FOLDER / f"{shard.name}.json"
