"""Walk through a folder: possible images, datasets of known layouts, and ignored files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from viewalign.data.file_types import suffix_of
from viewalign.data.readers.pointers import missing_content
from viewalign.data.sources.records import Exclusion, SourceContents
from viewalign.errors import os_reason
from viewalign.utils.io import is_folder

ClaimFolder = Callable[[Path, list[str], list[str]], bool]
"""Called with a folder and the names of its files and folders; true if another reader handles the folder."""


def walk(root: Path, contents: SourceContents, claim: ClaimFolder | None = None) -> Iterator[Path]:
    """Yield all files below a folder, and folders that are named like an image.

    Names that start with a dot are ignored; links are followed, but a folder is entered once. A folder that `claim`
    handles is not entered.
    """
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        reason = f"the folder cannot be listed: {os_reason(error)}"
        contents.excluded.append(Exclusion(printable(Path(error.filename)), reason))

    for folder, folders, files in os.walk(root, followlinks=True, onerror=unreadable):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if claim is not None and claim(Path(folder), files, folders):
            folders.clear()
            continue
        for name in (*files, *(name for name in folders if suffix_of(name))):
            if not name.startswith("."):
                yield Path(folder) / name


def image_files(root: Path, contents: SourceContents) -> Iterator[tuple[Path, str]]:
    """Yield files below a folder that are named like an image, sorted, with their names without suffix.

    Files that cannot be images are added to `contents.excluded`; other types are counted.
    """
    for path in sorted(walk(root, contents)):
        if (suffix := suffix_of(path.name)) is None:
            contents.pass_over(path)
        elif (reason := obvious_fault(path)) is not None:
            contents.excluded.append(Exclusion(printable(path), reason))
        else:
            yield path, path.name[: -len(suffix)]


def obvious_fault(path: Path) -> str | None:
    """Return why a path cannot be an image without opening it, or None."""
    if (reason := missing_content(path) or unwritable_name(path)) is not None:
        return reason
    return "it is a folder with the name of an image" if is_folder(path) else None


def unwritable_name(path: Path) -> str | None:
    """Return why a catalogue cannot have a path, or None; the file is not accessed."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    return None


def printable(path: Path) -> str:
    """Return a path as text that can be written, even if its bytes are not valid UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def absolute(text: str | Path) -> Path:
    """Return an absolute path without following links, so that names stay as the user knows them."""
    return Path(os.path.abspath(text))  # noqa: PTH100
