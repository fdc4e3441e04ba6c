"""Checkpoints that are whole or not there: a new folder, flushed to disk, then renamed.

Each one is a folder `checkpoints/step_00001000` with `state.pt` (tensors and plain values, never a pickle of code) and
`checkpoint.json`. Nothing is ever overwritten, so a run that dies while writing leaves the last good one untouched.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import IO, Any, cast

import torch

from viewalign.errors import UserError

FORMAT = 1
_PREFIX = "step_"


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write a checkpoint and return its folder.

    Raises:
        OSError: the disk is full or cannot be written; what was there before is still there.
    """
    final = folder / f"{_PREFIX}{step:08d}"
    if final.is_dir():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".writing-{_PREFIX}{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        with io.FileIO(partial / "state.pt", "wb") as file:
            taker = _Patient(file)
            torch.save({"format": FORMAT, "step": step, **state}, cast(IO[bytes], taker))
            taker.settle()
        with (partial / "checkpoint.json").open("w") as file:
            json.dump({"format": FORMAT, "step": step}, file)
            _flush(file.fileno())
        partial.rename(final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush_folder(folder)
    return final


class _Patient:
    """A file for torch's writer, which never sees a write fail; `settle` raises the failure afterwards, as it was.

    Broken off in the middle, that writer tries to write its end all the same and reports an error of its own instead.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._problem: OSError | None = None

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        try:
            while self._problem is None and len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as problem:
            self._problem = problem
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def settle(self) -> None:
        if self._problem is not None:
            raise self._problem
        _flush(self._file.fileno())


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name.removeprefix(_PREFIX)) for entry in folder.glob(f"{_PREFIX}*") if entry.is_dir())


def path_of(folder: Path, step: int) -> Path:
    """Return the folder of one checkpoint."""
    return folder / f"{_PREFIX}{step:08d}"


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state onto the CPU.

    Raises:
        UserError: it is damaged, or was written by a newer version.
    """
    try:
        state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except Exception as problem:
        raise UserError(
            f"The checkpoint {path} cannot be read ({problem}). Remove its folder to use the one before."
        ) from None
    if state.get("format") != FORMAT:
        raise UserError(f"The checkpoint {path} has format {state.get('format')}; this version reads {FORMAT}.")
    return state


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the newest checkpoint that can be read; returns it (or None) and a sentence for each that could not."""
    complaints: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return load(path_of(folder, step)), complaints
        except UserError as problem:
            complaints.append(str(problem))
    return None, complaints


def prune(folder: Path, keep_last: int, keep_every: int = 0, also: tuple[int, ...] = ()) -> None:
    """Remove all checkpoints but the newest, every `keep_every`-th step, and the steps named in `also`."""
    present = steps(folder)
    kept = {*present[-keep_last:], *also}
    if keep_every:
        kept |= {step for step in present if step % keep_every == 0}
    for step in present:
        if step not in kept:
            shutil.rmtree(path_of(folder, step), ignore_errors=True)
