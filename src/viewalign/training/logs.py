"""The logs of a run: `log.jsonl` for programs, and `run.log` for reading; `trackers` has other destinations.

Rows are averages over the steps since the row before. Scalars stay on the device until a row is written, so that
logging costs one wait in many steps.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.training.trackers import Tracker
from viewalign.utils.io import write_text
from viewalign.utils.precision import send
from viewalign.utils.text import counted
from viewalign.weights.run_folder import read_log

_log = logging.getLogger(__name__)
PROGRESS = logging.getLogger("viewalign.training.progress")
"""Progress lines, for `run.log`; the console shows them in place."""
PROGRESS.propagate = False
PROGRESS.setLevel(logging.INFO)


class RunLog:
    """Writes rows of a run. Rows that do not fit on the disk wait in memory until they do.

    Args:
        path: the `log.jsonl`; rows past `step` are cut away, so that a resumed run does not write steps twice.
        step: where the run begins.
        boards: where rows go besides.
    """

    def __init__(self, path: Path, step: int = 0, boards: Sequence[Tracker] = ()) -> None:
        _cut_back(path, step)
        self._file = path.open("ab", buffering=0)
        self._end = self._file.tell()
        self._boards = list(boards)
        self._waiting: list[bytes] = []

    def row(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write one row; `kind` is "train", "validation", "health", "data" or "event"."""
        waited = bool(self._waiting)
        self._waiting.append(json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n")
        try:
            self._write()
        except OSError as problem:
            if not waited:
                _log.warning("The log cannot be written (%s); its rows wait until there is space.", problem)
        self._on_boards(lambda board: board.row(kind, step, values))

    def picture(self, step: int, image: NDArray[np.uint8]) -> None:
        """Show a grey image (rows, columns) on the boards."""
        self._on_boards(lambda board: board.picture(step, image))

    def settle(self) -> None:
        """See to it that every row is on the disk, as a checkpoint needs: what it was saved after must not be lost.

        Raises:
            OSError: the disk has no space for them.
        """
        self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the boards."""
        try:
            self._write()
        except OSError as problem:
            lost = counted(len(self._waiting), "row")
            _log.warning("The end of the log (%s) could not be written: %s.", lost, problem)
        self._file.close()
        self._on_boards(lambda board: board.close())

    def _write(self) -> None:
        """Write the rows that wait, or none: half a row is taken back."""
        rows = memoryview(b"".join(self._waiting))
        done = 0
        try:
            while done < len(rows):
                done += self._file.write(rows[done:])
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += done
        self._waiting.clear()

    def _on_boards(self, act: Callable[[Tracker], None]) -> None:
        """Do something with each board; one that fails is left, for `log.jsonl` holds everything.

        Whatever another package raises must not end a run: its server may be down.
        """
        for board in list(self._boards):
            try:
                act(board)
            except Exception as problem:
                self._boards.remove(board)
                _log.warning("%s cannot be written (%s) and is not used any longer.", type(board).__name__, problem)


def _cut_back(path: Path, step: int) -> None:
    if path.is_file():
        rows = [row for row in read_log(path) if step > 0 and row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def log_file(path: Path, first: bool) -> Iterator[None]:
    """Append the messages and progress lines of a run to its `run.log` while the context is open.

    Args:
        path: the file.
        first: whether this is the first process of the run; the messages of others are dropped.
    """
    if not first:
        logging.getLogger("viewalign").setLevel(logging.ERROR)
        yield
        return
    handler = _LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    loggers = logging.getLogger("viewalign"), PROGRESS
    level = loggers[0].level
    loggers[0].setLevel(level or logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        loggers[0].setLevel(level)
        with suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, a method of logging
        """Ignore a full disk: `log.jsonl` has the figures."""


class MetricAccumulator:
    """Sums scalars on their device and returns their means; its state is part of checkpoints.

    Each scalar is divided by the number of steps that had it: some are computed now and then only.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's scalars."""
        for name, value in values.items():
            value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Return the means since the last call, reduced over processes by `reduce`, and start again from nothing."""
        if not self._sums:
            return {}
        # Rates and norms are known to the CPU, losses to the GPU; a stack takes no tensors of both.
        devices = [value.device for value in self._sums.values()]
        device = next((one for one in devices if one.type != "cpu"), devices[0])
        stacked = torch.stack([send(value / self._counts[name], device) for name, value in self._sums.items()])
        stacked = stacked if reduce is None else reduce(stacked)
        means = dict(zip(self._sums, stacked.tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"sums": {name: value.cpu() for name, value in self._sums.items()}, "counts": dict(self._counts)}

    def restore(self, states: Sequence[dict[str, Any]], rank: int, processes: int, device: torch.device) -> None:
        """Resume with a process's own sums, or with the mean of all where the number of processes is another one now.

        All processes have added equally many steps, so that the means over them stay what they were.
        """
        if len(states) == processes:
            state = states[rank]
        else:
            names = states[0]["sums"]
            means = {name: torch.stack([one["sums"][name] for one in states]).mean(0) for name in names}
            state = {"sums": means, "counts": states[0]["counts"]}
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
