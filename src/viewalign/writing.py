"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
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
