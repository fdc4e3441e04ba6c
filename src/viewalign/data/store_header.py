"""The header of a store, `store.json`, with the settings of its preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from viewalign.data.layout import STORE_FORMAT, STORE_VERSION, write_json
from viewalign.data.settings import RECIPE_VERSION, PrepareSettings, diff_preparation
from viewalign.data.store import read_store_header
from viewalign.errors import UserError
from viewalign.utils import outputs
from viewalign.utils.io import PARTIAL_PREFIX
from viewalign.utils.locks import LOCK


def check_folder(store: Path, settings: PrepareSettings) -> bool:
    """Check that a folder can become a store with these settings, and return whether it is one; nothing is written.

    Raises:
        UserError: the folder contains other files or a store with other settings.
    """
    header = read_store_header(store)
    if header is None and store.is_dir() and any(not _is_ours(path) for path in store.iterdir()):
        header = read_store_header(store)  # another part may have created the store in the meantime
        if header is None:
            outputs.check_folder(store, "store", False, [path.name for path in store.iterdir() if _is_ours(path)])
    if header is not None and header.get("recipe_hash") != settings.fingerprint():
        raise UserError(_other_recipe(store, header, settings))
    return header is not None


def open_for_writing(store: Path, settings: PrepareSettings) -> None:
    """Create a store with these settings in a folder that is locked, or check an existing one.

    Raises:
        UserError: the folder contains other files or a store with other settings, or cannot be written.
    """
    try:
        if not check_folder(store, settings):
            write_header(store, settings, None)
    except OSError as error:
        raise UserError(f"The store {store} cannot be written: {error.strerror}.") from None


def write_header(store: Path, settings: PrepareSettings, images: int | None) -> None:
    """Write `store.json`; `images` is None until a run has finished."""
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


def _is_ours(path: Path) -> bool:
    """Return whether a file is a lock or a `store.json` that is being written, perhaps of a run that was killed."""
    return path.name.startswith(LOCK) or (path.name.startswith(PARTIAL_PREFIX) and path.name.endswith("-store.json"))


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
        difference = f"version {version} there, {RECIPE_VERSION} requested"
    return (
        f"The store {store} was made with other settings ({made_with}; requested: {settings.describe()}, "
        f"version {RECIPE_VERSION}). {f'They differ in: {difference}. ' if difference else ''}"
        "Use another folder or the same settings."
    )
