"""Files of a store, and how they are written so that an interrupted run leaves no incomplete image.

```
STORE/store.json                                        recipe, versions, counts
STORE/index.json                                        one column per property, sorted by id
STORE/report.json                                       {"prepared": n, "excluded": [{"file", "reason"}]}
STORE/.run.lock                                         empty unless a run is writing (`utils.locks`)
STORE/volumes/<dataset>/<subject>/<session>/<image>.b2nd            voxels (C, D, H, W)
                                            <image>.json            properties; written last, marks the image as done
                                            <image>.<kind>.b2nd     a mask, uint8 (1, D, H, W)
```

No time, host or user name is written anywhere: the same images and recipe result in the same bytes.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from viewalign.errors import is_access_error
from viewalign.utils.io import PARTIAL_PREFIX, partial_write, write_bytes

STORE_FORMAT = "viewalign-store"
STORE_VERSION = 2
MASK_KINDS = ("anonymisation", "anatomy")
_ARRAYS = (*(f".{kind}.b2nd" for kind in MASK_KINDS), ".b2nd")

# Super-crops of pairs of views ÷ unpacking just their voxels (benchmarks/reads.py): blocks of 16 take 1.5 / 1.3 / 1.1
# / 1.0 times for views of 48 / 64 / 96 / 128, blocks of 32 take 2.2 / 1.8 / 1.4 / 1.2 times, but unpack faster: at 128
# they take 19 ms against 24. Chunks of 32 to 128 are equal. Level 8 reads no faster than 5, is no smaller and takes
# five times as long to write.
_BLOCK, _LARGE_BLOCK, _LARGE_VIEW = 16, 32, 112
_CHUNK = 64
_LEVEL = 5
_FRAME = re.compile(r"-frame(\d{4})$")

Size = tuple[int, int, int]


def chunk_and_block(view: Size | None = None) -> tuple[Size, Size]:
    """Return chunk and block sizes (D, H, W) of stored arrays for views of a size; None suits 64 to 96."""
    d, h, w = (_LARGE_BLOCK if n >= _LARGE_VIEW else _BLOCK for n in view or (0, 0, 0))
    return (_CHUNK, _CHUNK, _CHUNK), (d, h, w)


def entry_path(dataset: str, subject: str, session: str, image: str) -> str:
    """Return an image's path relative to the store, without suffix; safe for any name."""
    return "/".join(("volumes", safe_name(dataset), safe_name(subject), safe_name(session), safe_name(image)))


def frame_name(image: str, number: int) -> str:
    """Return the id, or the path in the store, of a frame that is stored as a separate image."""
    return f"{image}-frame{number:04d}"


def frame_of(name: str) -> tuple[str, int | None]:
    """Return the image of a frame's id or path, and the number; None of what has not the name of a frame."""
    match = _FRAME.search(name)
    return (name[: match.start()], int(match.group(1))) if match else (name, None)


def image_of(path: str, properties: Mapping[str, Any]) -> str:
    """Return the path of the image that an entry is of: the entry's own, or that of a frame without its number."""
    return frame_of(path)[0] if "frame" in properties else path


def safe_name(name: str) -> str:
    """Return `name` as a file name: letters, digits, `.`, `_`, `-`; changed names get a hash to stay unique."""
    clean = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100].lstrip(".") or "_"
    if clean == name and not name.endswith(tuple(f".{kind}" for kind in MASK_KINDS)):  # suffixes of masks
        return name
    return f"{clean}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def _write_beside(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name in its folder, flush it to disk, and return that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_write(path) as temporary:
        temporary.write_bytes(content)
    return temporary


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, keys in the order of `value`."""
    write_bytes(path, _json_bytes(value))


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not valid JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def compress(array: NDArray[np.generic], sizes: tuple[Size, Size] | None = None) -> bytes:
    """Return the bytes of a `.b2nd` file for an array (C, D, H, W), in chunks and blocks of these sizes.

    One thread, because with more the order of blocks in the file depends on timing.
    """
    chunk, block = sizes or chunk_and_block()
    spatial = array.shape[1:]
    chunks = (1, *(min(n, size) for n, size in zip(spatial, chunk, strict=True)))
    blocks = (1, *(min(n, size) for n, size in zip(spatial, block, strict=True)))
    cparams = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=_LEVEL, nthreads=1, typesize=array.dtype.itemsize)
    os.environ.pop("BLOSC_NTHREADS", None)  # it would overrule nthreads, and is written into the file
    packed = blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=cparams)
    return bytes(packed.to_cframe())


def write_entry(
    store: Path,
    relative: str,
    array: NDArray[np.generic],
    properties: dict[str, Any],
    masks: dict[str, NDArray[np.uint8]] | None = None,
    sizes: tuple[Size, Size] | None = None,
) -> None:
    """Write one image: voxels (C, D, H, W), masks (D, H, W), and the properties, which mark it as done.

    An existing image of the same name is replaced once all files of the new one are on the disk, so that it
    survives an error before that.

    Args:
        store: the store's folder.
        relative: the image's path in it, without suffix.
        array: its voxels.
        properties: of the image; `files` (bytes of each array, by suffix) and `crc32` (its checksum) are added.
        masks: by kind.
        sizes: of chunks and blocks.
    """
    contents = {f".{kind}.b2nd": compress(mask[None], sizes) for kind, mask in (masks or {}).items()}
    contents[".b2nd"] = compress(array, sizes)
    replace_entry(store, relative, contents, properties, _ARRAYS)


def replace_entry(
    store: Path, relative: str, contents: Mapping[str, bytes], properties: Mapping[str, Any], suffixes: Sequence[str]
) -> None:
    """Replace the files of an earlier version of an image.

    Everything is written under other names and flushed first. The JSON of properties, which marks an image as complete,
    is removed first and written last, so that a mixture of two versions never counts as an image.

    Args:
        store: the folder.
        relative: the image's path in it, without suffix.
        contents: bytes by suffix.
        properties: see `write_entry`.
        suffixes: all possible ones besides `.json`; files that are not in `contents` are removed.
    """
    sweep_entry(store, relative, suffixes)
    sizes = {suffix: len(content) for suffix, content in sorted(contents.items())}
    sums = {suffix: checksum(content) for suffix, content in sorted(contents.items())}
    mark = _json_bytes({**properties, "files": sizes, "crc32": sums})
    new: dict[str, Path] = {}
    try:
        for suffix, content in {**contents, ".json": mark}.items():
            new[suffix] = _write_beside(beside(store, relative, suffix), content)
        beside(store, relative, ".json").unlink(missing_ok=True)
        for suffix in (*suffixes, ".json"):
            path = beside(store, relative, suffix)
            if suffix in new:
                new[suffix].replace(path)
            else:
                path.unlink(missing_ok=True)
    finally:
        for temporary in new.values():
            temporary.unlink(missing_ok=True)


def checksum(content: bytes) -> str:
    """Return the CRC-32 of a file's bytes as 8 hex digits."""
    return f"{zlib.crc32(content):08x}"


def forget_entry(store: Path, relative: str) -> None:
    """Remove an image, its mark first, and unfinished files of a killed run."""
    for suffix in (".json", *_ARRAYS):
        beside(store, relative, suffix).unlink(missing_ok=True)
    sweep_entry(store, relative)


def sweep_entry(store: Path, relative: str, suffixes: Sequence[str] = _ARRAYS) -> None:
    """Remove unfinished files of an image that a killed process left."""
    for suffix in (".json", *suffixes):
        path = beside(store, relative, suffix)
        for left in path.parent.glob(f"{PARTIAL_PREFIX}*-{glob.escape(path.name)}"):
            left.unlink(missing_ok=True)


def beside(store: Path, relative: str, suffix: str) -> Path:
    """Return the file of an entry with this suffix."""
    return store / (relative + suffix)


def done_properties(store: Path, relative: str) -> dict[str, Any] | None:
    """Return the properties of a complete image, or None.

    Raises:
        OSError: its files cannot be read for want of permission or of the disk, so that they may be complete.
    """
    try:
        properties = read_json(beside(store, relative, ".json"))
        files = properties["files"]
        if all(beside(store, relative, suffix).stat().st_size == size for suffix, size in files.items()):
            return dict(properties)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        if is_access_error(problem):
            raise
    return None


@dataclass(frozen=True)
class ImageProgress:
    """Progress of a preparation.

    Attributes:
        done: processed images, skipped and excluded ones included.
        total: number of images.
        skipped: number of these that were already in the store.
        excluded: number of these that were excluded.
        reason: why the latest image was excluded, or None.
        file: the latest image.
    """

    done: int
    total: int
    skipped: int
    excluded: int
    file: str
    reason: str | None = None

    def words(self, what: str) -> str:
        """Return the work and its counts, as `Preparing, 3 already there`."""
        counts = [(self.skipped, "already there"), (self.excluded, "excluded")]
        return ", ".join([what, *(f"{count} {state}" for count, state in counts if count)])


ProgressListener = Callable[[ImageProgress], None]
