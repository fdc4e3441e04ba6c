"""A run in n parts, as an array job has it, and the one result that they leave together.

Part i takes every n-th image from the i-th on. When it is done it leaves `parts/i-of-n.json` with what it refused; the
part that finds all n there writes index and report as a single run would, and removes `parts`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from viewalign.errors import UserError
from viewalign.volumes.layout import read_json, write_json
from viewalign.volumes.sources import Refusal

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
            raise UserError(f"--shard {text}: give i/n with 1 ≤ i ≤ n, such as 3/16 for the third of sixteen parts.")
        return cls(int(match.group(1)), int(match.group(2)))

    @property
    def whole(self) -> bool:
        """Whether it is all there is."""
        return self.count == 1

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this part's items."""
        return items[self.number - 1 :: self.count]


def leave_part(store: Path, shard: Shard, refused: Sequence[Refusal]) -> None:
    """Say that a part is done, and what it refused."""
    write_json(_path(store, shard), [refusal.as_json() for refusal in sorted(set(refused))])


def missing_parts(store: Path, count: int) -> list[int]:
    """Return the parts that are not done yet."""
    return [n for n in range(1, count + 1) if not _path(store, Shard(n, count)).is_file()]


def refused_in_parts(store: Path, count: int) -> list[Refusal] | None:
    """Return what all parts refused together, sorted; None where another part has tidied up in the meantime."""
    found: set[Refusal] = set()
    try:
        for n in range(1, count + 1):
            found |= {Refusal(entry["file"], entry["reason"]) for entry in read_json(_path(store, Shard(n, count)))}
    except OSError:
        return None
    return sorted(found)


def remove_parts(store: Path) -> None:
    """Remove what parts have left: of this run, and of an earlier one of another count."""
    shutil.rmtree(store / _FOLDER, ignore_errors=True)


def forget_part(store: Path, shard: Shard) -> None:
    """Take back that a part is done; it begins anew."""
    _path(store, shard).unlink(missing_ok=True)


def _path(store: Path, shard: Shard) -> Path:
    return store / _FOLDER / f"{shard.number}-of-{shard.count}.json"
