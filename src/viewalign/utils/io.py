"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a name beside a file to write under; it takes the file's place when the block ends well.

    Where the block fails, as on a full disk, what was there before is still there, and what was begun is removed.
    """
    partial = path.with_name(f".writing-{path.name}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        raise


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file, whole or not at all.

    safetensors' own writer (0.8) lets nobody but the owner read the file, so that a group could not share weights;
    this one leaves it to the umask, as for every other file.

    Raises:
        OSError: the file cannot be written; safetensors' error where tensors share memory.
    """
    from safetensors.torch import save

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as partial:
        partial.write_bytes(save(held, metadata={"format": "pt"}))


def write_json(path: Path, tree: Any) -> None:
    """Write plain values as an indented JSON file, replacing it atomically."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
