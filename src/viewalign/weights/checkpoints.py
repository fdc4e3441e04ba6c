"""Checkpoints, written atomically: a new folder is flushed to disk, then renamed.

Each is a folder `checkpoints/step_00001000` with `state.pt` (tensors and plain values, never a pickle of code) and
`checkpoint.json`, which holds the SHA-256 of the state. Nothing is overwritten, so that a run that ends while writing
keeps its last good checkpoint. A damaged one is renamed to `step_00001000.damaged` when its run is resumed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from viewalign.errors import DamageWarning, UserError, is_access_error, os_reason
from viewalign.weights.files import sha256_of

FORMAT = 1
_PART = 2**26
"""Bytes that are flushed to the disk together."""
_NAME = re.compile(r"step_(\d{8,})")


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are incomplete, changed or in an unknown format."""


def save(folder: Path, step: int, state: dict[str, Any], progress: Callable[[], object] = lambda: None) -> Path:
    """Write a checkpoint and return its folder; an existing one is kept unless it is damaged.

    Args:
        folder: the run's folder of checkpoints.
        step: number of the step.
        state: tensors and plain values.
        progress: called after each part of the state that was written.

    Raises:
        OSError: the disk is full or cannot be written; existing files are unchanged.
    """
    final = path_of(folder, step)
    if final.is_dir():
        if damage(final) is None:
            return final
        rename_damaged(final)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".writing-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        with io.FileIO(partial / "state.pt", "wb") as file:
            writer = _DeferredErrors(file, progress)
            torch.save({"format": FORMAT, "step": step, **state}, cast(IO[bytes], writer))
            writer.finish()
        with (partial / "checkpoint.json").open("w") as file:
            json.dump({"format": FORMAT, "step": step, "sha256": writer.sha256.hexdigest()}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(final)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush_folder(folder)
    return final


class _DeferredErrors:
    """A file for torch's writer that hides failed writes from it; `finish` raises the original error afterwards.

    When a write fails, torch's writer still tries to write its end and reports another error instead.

    Attributes:
        sha256: of the written bytes.
    """

    def __init__(self, file: io.FileIO, progress: Callable[[], object]) -> None:
        self._file, self._progress = file, progress
        self._unflushed = 0
        self._error: OSError | None = None
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        self.sha256.update(rest)
        try:
            while self._error is None and len(rest):
                written = self._file.write(rest[:_PART])
                rest = rest[written:]
                self._unflushed += written
                if self._unflushed >= _PART:  # otherwise the flush at the end would take most of the time
                    self.finish()
                self._progress()
        except OSError as error:
            self._error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def finish(self) -> None:
        """Flush what was written to the disk.

        Raises:
            OSError: a write failed.
        """
        if self._error is not None:
            raise self._error
        os.fsync(self._file.fileno())
        self._unflushed = 0


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending; folders of other names are ignored."""
    if not folder.is_dir():
        return []
    names = (_NAME.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(name[1]) for name in names if name is not None)


def path_of(folder: Path, step: int) -> Path:
    """Return the folder of one checkpoint."""
    return folder / f"step_{step:08d}"


def damage(path: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, or None; the state is read once to compute its SHA-256.

    A checkpoint of an earlier version without a checksum is accepted.

    Raises:
        UserError: the system could not read them, which does not mean that they are damaged.
    """
    try:
        facts = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        wanted = facts.get("sha256")
    except (OSError, ValueError, AttributeError) as problem:
        _check_access(path, problem)
        return f"its checkpoint.json cannot be read ({problem})"
    if wanted is None:
        return None
    try:
        if not (path / "state.pt").is_file():  # a pipe would be waited for
            return "it has no state.pt"
        found = sha256_of(path / "state.pt")
    except OSError as problem:
        _check_access(path, problem)
        return f"its state.pt cannot be read ({problem})"
    return "its state.pt is not as it was written (SHA-256 differs)" if found != wanted else None


def _check_access(path: Path, problem: Exception) -> None:
    """Raise a `UserError` if a file could not be read for want of permission or of its disk."""
    if is_access_error(problem):
        raise UserError(f"The checkpoint {path} cannot be read: {os_reason(problem)}.") from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state onto the CPU.

    Raises:
        DamagedCheckpointError: its files have changed since they were written.
        UserError: it was written by a newer version, or the system could not read it.
    """
    if reason := damage(path):
        raise DamagedCheckpointError(f"The checkpoint {path} is damaged: {reason}.")
    try:
        state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        found = state["format"]
    except Exception as problem:
        _check_access(path, problem)
        raise DamagedCheckpointError(f"The checkpoint {path} cannot be read ({problem}).") from None
    if found != FORMAT:
        raise UserError(f"The checkpoint {path} has format {found}; this version reads {FORMAT}.")
    return state


def load_newest(folder: Path, warn: Callable[[str], object] | None = None) -> dict[str, Any] | None:
    """Read the newest checkpoint that is not damaged.

    Args:
        folder: the run's folder of checkpoints.
        warn: called with a message for each damaged one and for the one used instead; default: Python's warnings.

    Returns:
        Its state; None if there is none.
    """
    warn = warn or _warn
    damaged = False
    for step in reversed(steps(folder)):
        try:
            state = load(path_of(folder, step))
        except DamagedCheckpointError as problem:
            warn(str(problem))
            damaged = True
            continue
        if damaged:
            warn(f"The checkpoint of step {step} is used instead, the newest that is not damaged.")
        return state
    return None


def _warn(sentence: str) -> None:
    warnings.warn(sentence, DamageWarning, stacklevel=3)


def resume_newest(folder: Path, warn: Callable[[str], object] | None = None) -> dict[str, Any] | None:
    """Read the newest checkpoint that is not damaged, as `load_newest`, and rename the damaged ones after it.

    Used by a run that resumes; it computes those steps again.
    """
    state = load_newest(folder, warn)
    for step in steps(folder):
        if state is None or step > state["step"]:
            rename_damaged(path_of(folder, step))
    return state


def rename_damaged(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it can be inspected, and return its new path."""
    name, number = path.with_name(f"{path.name}.damaged"), 1
    while name.exists():
        number += 1
        name = path.with_name(f"{path.name}.damaged-{number}")
    return path.rename(name)


def prune(folder: Path, keep_last: int, keep_every: int = 0, also: tuple[int, ...] = ()) -> None:
    """Remove all checkpoints but the newest, every `keep_every`-th step, and the steps named in `also`."""
    present = steps(folder)
    kept = {*present[-keep_last:], *also}
    if keep_every:
        kept |= {step for step in present if step % keep_every == 0}
    for step in present:
        if step not in kept:
            shutil.rmtree(path_of(folder, step), ignore_errors=True)
