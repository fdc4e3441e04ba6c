"""Checks of outputs: a command replaces nothing but an earlier output of the same command."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

from viewalign.errors import UserError

Recognise = Callable[[Path], bool]
"""Whether an existing file is an earlier output of the same command."""


def check_file(path: Path, what: str, suffixes: Collection[str] = (), ours: Recognise | None = None) -> None:
    """Check that an output file may be written: it is missing, empty, or an earlier output of the same command.

    Args:
        path: the file.
        what: its content, such as `catalogue`.
        suffixes: endings of its name; empty for any.
        ours: whether an existing file is an earlier output; it may raise OSError, ValueError or UserError if it is not.
            None: an existing file is never replaced.

    Raises:
        UserError: another ending, a folder, or a file with other content.
    """
    if path.is_dir():
        raise UserError(f"{path} is not written: it is a folder. Name a file with -o.")
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"{path} is not written: its name must end in {' or '.join(suffixes)}.")
    if not path.exists() or path.stat().st_size == 0:
        return
    if ours is None or not _holds(ours, path):
        reason = "" if ours is None else f" and is no earlier {what}"
        raise UserError(f"{path} is not written: it exists{reason}. Name another file with -o.")


def _holds(ours: Recognise, path: Path) -> bool:
    try:
        return ours(path)
    except (OSError, ValueError, UserError):
        return False


def check_folder(folder: Path, what: str, ours: bool | None = None, ignored: Collection[str] = ()) -> None:
    """Check that an output folder may be written: it is missing, empty, or an earlier output of the same command.

    Args:
        folder: the folder.
        what: its content, such as `run`.
        ours: whether it is an earlier output; None: a folder with contents is never written to.
        ignored: names of entries that may be in a new folder, such as locks.

    Raises:
        UserError: a file, or a folder with other contents.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not written: it is a file. Name a new folder with -o.")
    others = sorted(set(_names(folder)) - set(ignored))
    if others and not ours:
        reason = "" if ours is None else f" and is no earlier {what}"
        raise UserError(
            f"{folder} is not written: it contains {others[0]}{reason}. Name a new or empty folder with -o."
        )


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def has_keys(*keys: str) -> Recognise:
    """Return whether a file is a JSON object with all of these keys."""

    def check(path: Path) -> bool:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(tree, dict) and set(keys) <= set(tree)

    return check


def contains(text: str) -> Recognise:
    """Return whether a file contains this text."""
    return lambda path: text.encode() in path.read_bytes()
