"""Check of stored arrays against the checksums that were written with them."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from viewalign.data.layout import read_json
from viewalign.errors import os_reason
from viewalign.utils.io import raise_unless_missing

_BLOCK = 1 << 20


def image_damage(mark: Path) -> list[tuple[Path, str]]:
    """Return the damaged files of a stored image, each with the reason.

    Every array is read once, for its CRC-32. Of images without checksums, of earlier versions, the size is checked.

    Args:
        mark: the JSON of the image's properties.
    """
    try:
        properties = read_json(mark)
        sizes, sums = dict(properties["files"]), dict(properties.get("crc32", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        return [(mark, f"it cannot be read: {os_reason(problem)}")]
    paths = {suffix: mark.with_name(mark.name.removesuffix(".json") + suffix) for suffix in sizes}
    reasons = [(path, _damage(path, sizes[suffix], sums.get(suffix))) for suffix, path in paths.items()]
    return [(path, reason) for path, reason in reasons if reason is not None]


def _damage(path: Path, size: int, wanted: str | None) -> str | None:
    try:
        present = path.stat().st_size
        if present != size:
            return f"it has {present:,} bytes instead of {size:,}"
        found = 0
        with path.open("rb") as file:
            while wanted is not None and (block := file.read(_BLOCK)):
                found = zlib.crc32(block, found)
    except OSError as problem:
        return f"it cannot be read: {os_reason(problem)}"
    same = wanted is None or f"{found:08x}" == wanted
    return None if same else f"its checksum is {found:08x}, but {wanted} was recorded"


class CheckedImages:
    """Records which images of a store were checked, for this process and its forks.

    Args:
        images: number in the store.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._flags = mmap.mmap(-1, max(images, 1))  # anonymous memory, which forked readers share

    def __reduce__(self) -> tuple[type[CheckedImages], tuple[int]]:
        return CheckedImages, (self._images,)

    def __contains__(self, image: int) -> bool:
        return self._flags[image] != 0

    def add(self, image: int) -> None:
        """Record that an image was checked and is undamaged."""
        self._flags[image] = 1


def verify_store(store: Path, on_image: Callable[[int, int], None] | None = None) -> tuple[int, list[tuple[Path, str]]]:
    """Read every array of a store and compare it with its checksum.

    Args:
        store: the folder.
        on_image: called with (images checked, total).

    Returns:
        Number of images, and the damaged files, each with the reason.
    """
    marks = sorted(
        Path(folder) / name
        for folder, _, files in os.walk(store / "volumes", onerror=raise_unless_missing)
        for name in files
        if name.endswith(".json") and not name.startswith(".")
    )
    problems: list[tuple[Path, str]] = []
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        for number, found in enumerate(pool.map(image_damage, marks), 1):
            problems.extend(found)
            if on_image is not None:
                on_image(number, len(marks))
    return len(marks), problems
