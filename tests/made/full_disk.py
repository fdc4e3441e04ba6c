"""A disk without room, by a real limit on the size of files."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_room(size: int = 1000) -> Iterator[None]:
    """No file of this process and its children may grow past `size` bytes.

    Python would keep cut copies of the modules that are imported meanwhile (its writer of bytecode does not look how
    much was written), and every later import of them would fail: so none are written.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sys.dont_write_bytecode, os.environ.get("PYTHONDONTWRITEBYTECODE")
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = before[0]
        os.environ.pop("PYTHONDONTWRITEBYTECODE")
        if before[1] is not None:
            os.environ["PYTHONDONTWRITEBYTECODE"] = before[1]
