"""Writing files and folders atomically, names that are safe as file names, and text that is safe on a terminal."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viewalign.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL_PREFIX = ".writing-"
"""Prefix of the names of files that are being written; the name of the finished file follows."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file is flushed to disk and renamed when the block succeeds.

    If the block fails, as on a full disk, the previous file is kept and the partial file is removed. The name is
    unique, so that several processes may write the same file: the last one to finish replaces the others' files.
    """
    with partial_write(path) as partial:
        yield partial
    try:
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def partial_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, and flush it to disk; the caller renames it. It is removed on failure."""
    partial = path.with_name(f"{PARTIAL_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; missing parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def is_file(path: Path) -> bool:
    """Return whether there is a file; False also if it cannot be reached, where pathlib raises.

    Reading it reports why.
    """
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether there is a folder; False also if it cannot be reached, where pathlib raises."""
    return os.path.isdir(path)  # noqa: PTH112


def raise_unless_missing(problem: OSError) -> None:
    """Raise the error of a walk through folders that has to see all of them; one that does not exist is empty."""
    if not isinstance(problem, FileNotFoundError):
        raise problem


_LONGEST_NAME = 200
"""Longest name in bytes; file systems allow 255, and suffixes are added."""


def check_file_name(name: str) -> None:
    """Check that a name from a table or file is safe as a file name.

    Raises:
        UserError: it is empty, leads to another folder, begins with a dot, is too long or has control characters.
    """
    if not name or name.startswith(".") or any(sign in name for sign in "/\\") or not name.isprintable():
        raise UserError(
            f"{name!r} cannot be used as a file name: slashes, control characters and a leading dot are not allowed."
        )
    if len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        raise UserError(f"{name[:40]!r}… cannot be used as a file name: it is longer than {_LONGEST_NAME} bytes.")


def visible(text: str) -> str:
    """Return text safe for a terminal: control characters are replaced by escapes such as \\x1b."""
    return "".join(sign if sign in "\n\t" or not _is_control(sign) else f"\\x{ord(sign):02x}" for sign in text)


def _is_control(sign: str) -> bool:
    return ord(sign) < 32 or 127 <= ord(sign) < 160


def partial_folder(target: Path) -> Path:
    """Return where `replaced_folder` writes."""
    return target.with_name(f"{PARTIAL_PREFIX}{target.name}")


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, which replaces it when the block succeeds and is removed otherwise."""
    partial = partial_folder(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; missing parent folders are created."""
    write_bytes(path, text.encode())


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file atomically.

    safetensors' own writer (0.8) creates files that only their owner can read, which prevents sharing within a group;
    here the umask decides, as for every other file.

    Raises:
        OSError: the file cannot be written; safetensors' error where tensors share memory.
    """
    from safetensors.torch import save

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as partial:
        partial.write_bytes(save(held, metadata={"format": "pt"}))


def plain_values(tree: Any) -> Any:
    """Return values that JSON has.

    Dataclasses become mappings, sets and arrays lists, NaN and infinities None, and paths and other objects text.
    """
    if is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: plain_values(getattr(tree, field.name)) for field in fields(tree)}
    if isinstance(tree, Mapping):
        return {str(key): plain_values(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple | set | frozenset):
        return [plain_values(value) for value in tree]
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if hasattr(tree, "tolist"):
        return plain_values(tree.tolist())
    return tree if tree is None or isinstance(tree, str | int) else str(tree)


def write_json(path: Path, tree: Any) -> None:
    """Write values as an indented JSON file, replacing it atomically; see `plain_values`.

    NaN, which is no JSON and which browsers, R and `jq` refuse, becomes null.
    """
    write_text(path, json.dumps(plain_values(tree), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
