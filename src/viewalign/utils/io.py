"""Files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL_PREFIX = ".writing-"
"""Names of files that are being written begin with this; they end with the name of the finished file."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file is flushed to disk and renamed when the block succeeds.

    If the block fails, as on a full disk, the previous file stays and the partial file is removed. The name is unique,
    so that several processes may write the same file: the last one to finish replaces the others' files.
    """
    partial = path.with_name(f"{PARTIAL_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; missing parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; missing parent folders are created."""
    write_bytes(path, text.encode())


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file atomically.

    safetensors' own writer (0.8) makes files that only their owner can read, so that a group could not share weights;
    here the umask decides, as for every other file.

    Raises:
        OSError: the file cannot be written; safetensors' error where tensors share memory.
    """
    from safetensors.torch import save

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as partial:
        partial.write_bytes(save(held, metadata={"format": "pt"}))


def write_json(path: Path, tree: Any) -> None:
    """Write plain values as an indented JSON file, replacing it atomically."""
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
