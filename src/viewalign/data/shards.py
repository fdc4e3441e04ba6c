"""Parts of a preparation that run at different times or on different machines, and the files that each part leaves."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from viewalign.data.layout import read_json, write_json
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

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this part's items."""
        return items[self.number - 1 :: self.count]


def leave_part(store: Path, shard: Shard, excluded: Sequence[Exclusion]) -> None:
    """Record that a part is done, and its excluded images."""
    write_json(_path(store, shard), [exclusion.as_json() for exclusion in sorted(set(excluded))])


def missing_parts(store: Path, count: int) -> list[int]:
    """Return the parts that are not done yet."""
    return [n for n in range(1, count + 1) if not _path(store, Shard(n, count)).is_file()]


def excluded_in_parts(store: Path, count: int) -> list[Exclusion] | None:
    """Return the excluded images of all parts, sorted; None if another part has removed the records meanwhile."""
    found: set[Exclusion] = set()
    try:
        for n in range(1, count + 1):
            found |= {Exclusion(entry["file"], entry["reason"]) for entry in read_json(_path(store, Shard(n, count)))}
    except OSError:
        return None
    return sorted(found)


def remove_parts(store: Path) -> None:
    """Remove the records of parts: of this run, and of an earlier one with another count."""
    shutil.rmtree(store / _FOLDER, ignore_errors=True)


def forget_part(store: Path, shard: Shard) -> None:
    """Remove the record of a part, which starts again."""
    _path(store, shard).unlink(missing_ok=True)


def _path(store: Path, shard: Shard) -> Path:
    return store / _FOLDER / f"{shard.number}-of-{shard.count}.json"
