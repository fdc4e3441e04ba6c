"""What a run writes down: `log.jsonl`, and a line for the person who watches; `tracking` shows it elsewhere.

Rows are averages over the steps since the row before. Scalars stay on the device until a row is written, so that
logging costs one wait in many steps.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from viewalign.training.tracking import Board


class RunLog:
    """Writes rows of a run.

    Args:
        path: the `log.jsonl`; rows past `step` are cut away, so that a resumed run does not tell a stretch twice.
        step: where the run begins.
        boards: where rows go besides.
    """

    def __init__(self, path: Path, step: int = 0, boards: Sequence[Board] = ()) -> None:
        _cut_back(path, step)
        self._file = path.open("a")
        self._boards = boards

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one row; `kind` is "train", "validation", "health", "data" or "event"."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for board in self._boards:
            board.row(kind, step, values)

    def close(self) -> None:
        """Close the file and the boards."""
        self._file.close()
        for board in self._boards:
            board.close()


def _cut_back(path: Path, step: int) -> None:
    if path.is_file():
        rows = [row for row in read_log(path) if step > 0 and row["step"] <= step]
        partial = path.with_suffix(".jsonl.writing")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read all whole rows of a log."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


class Averages:
    """Sums scalars on their device and gives their means; its state travels in checkpoints."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's scalars."""
        for name, value in values.items():
            value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def take(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return the means since the last call, reduced over processes where asked for, and begin anew."""
        if not self._count:
            return {}
        stacked = torch.stack(list(self._sums.values())) / self._count
        stacked = stacked if reduce is None else reduce(stacked)
        means = dict(zip(self._sums, stacked.tolist(), strict=True))
        self._sums, self._count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"sums": {name: value.cpu() for name, value in self._sums.items()}, "count": self._count}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._count = state["count"]


class Ticker:
    """The line for the person who watches: redrawn in place on a terminal, now and then a new line elsewhere."""

    def __init__(self, stream: TextIO | None = None, seconds: float = 10.0, quiet: bool = False) -> None:
        self._stream: TextIO = io.StringIO() if quiet else stream or sys.stderr
        self._live = self._stream.isatty()
        self._seconds, self._last, self._width = seconds, -float("inf"), 0

    def show(self, text: str, force: bool = False) -> None:
        """Show a line; `force` writes it even if the last one is recent."""
        now = time.monotonic()
        if self._live:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif force or now - self._last >= self._seconds:
            self._stream.write(text + "\n")
            self._last = now
        self._stream.flush()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._stream.write(("\r" + " " * self._width + "\r" if self._live else "") + text + "\n")
        self._stream.flush()
        self._width = 0


def duration(seconds: float) -> str:
    """Write a number of seconds as a person would: `2 h 05 min`, `3 min 20 s`, `12 s`."""
    total = round(seconds)
    hours, minutes, rest = total // 3600, total % 3600 // 60, total % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
