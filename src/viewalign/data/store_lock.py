"""Making a folder the store of one recipe, and keeping two runs from preparing into it at the same time."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from viewalign.data.layout import STORE_FORMAT, STORE_VERSION, write_json
from viewalign.data.settings import RECIPE_VERSION, PrepareSettings, diff_preparation
from viewalign.data.store import read_store_header
from viewalign.errors import UserError

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


def lock_store(store: Path, settings: PrepareSettings) -> None:
    """Make the folder a store of these settings, or refuse it.

    Raises:
        UserError: it holds other things, a store of another recipe, or cannot be written.
    """
    header = read_store_header(store)
    if header is None and store.is_dir() and any(not _is_ours(path) for path in store.iterdir()):
        header = read_store_header(store)  # another part may have begun the store in the meantime
        if header is None:
            raise UserError(f"The folder {store} is not empty and holds no store. Give another folder to -o.")
    if header is not None and header.get("recipe_hash") != settings.fingerprint():
        raise UserError(_other_recipe(store, header, settings))
    try:
        if header is None:
            write_header(store, settings, None)
    except OSError as error:
        raise UserError(f"The store {store} cannot be written: {error.strerror}.") from None


def write_header(store: Path, settings: PrepareSettings, images: int | None) -> None:
    """Write `store.json`; `images` is None until a run has ended."""
    write_json(
        store / "store.json",
        {
            "format": STORE_FORMAT,
            "version": STORE_VERSION,
            "recipe": settings.model_dump(mode="json"),
            "recipe_version": RECIPE_VERSION,
            "recipe_hash": settings.fingerprint(),
            "images": images,
        },
    )


@contextmanager
def held(store: Path, alone: bool) -> Iterator[None]:
    """Hold the store while a run works: a whole run holds it alone, the parts of one run share it.

    The lock is of the folder itself, leaves no file and ends with its process; a file system without locks has none.

    Raises:
        UserError: another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(store, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise UserError(
                    f"Another run is preparing the store {store}. Wait for its end, or divide the work: "
                    "each run with its own shard=i/n."
                ) from None
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)


def _is_ours(path: Path) -> bool:
    """Say whether a file is a `store.json` that is being written, by another part or by a run that was killed."""
    return path.name.startswith(".store.json.") and path.name.endswith(".tmp")


def _other_recipe(store: Path, header: dict[str, Any], settings: PrepareSettings) -> str:
    recipe, version = header.get("recipe"), header.get("recipe_version")
    if recipe is None:
        made_with, difference = "from arrays, unprepared", ""
    else:
        try:
            there = PrepareSettings(**recipe)
            made_with, difference = f"{there.describe()}, version {version}", diff_preparation(there, settings)
        except (TypeError, ValueError):
            made_with, difference = f"{recipe}, version {version}", ""
    if not difference and version != RECIPE_VERSION:
        difference = f"version {version} there, {RECIPE_VERSION} asked for"
    return (
        f"The store {store} was made with another recipe ({made_with}; asked for now: {settings.describe()}, "
        f"version {RECIPE_VERSION}). {f'They differ in: {difference}. ' if difference else ''}"
        "Give another folder to -o, or the same settings."
    )
