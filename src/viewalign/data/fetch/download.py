"""Download of one file by HTTP: partial downloads are resumed, and the checksum is verified.

pooch verifies and stores the file; it cannot resume, so that it gets a downloader that can.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import math
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.utils.extras import missing
from viewalign.utils.locks import locked

Listener = Callable[[int, int], None]
"""Called with (bytes so far, total bytes)."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection is given up."""
_PIECE = 1 << 18
_ATTEMPTS = 5
_log = logging.getLogger(__name__)


def download(url: str, folder: Path, name: str, known_hash: str, on_bytes: Listener | None = None) -> Path:
    """Download a file unless it exists with the right checksum.

    Args:
        url: its address; `http` or `https`.
        folder: its destination.
        name: its file name; `.name.part` beside it is a partial download, which is resumed. While another process
            downloads the same file, this one waits.
        known_hash: `sha256:…` or `md5:…`.
        on_bytes: called with the progress.

    Raises:
        UserError: it cannot be downloaded, or its checksum is wrong.
    """
    need("pooch")
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    path, part = folder / name, folder / f".{name}.part"
    if path.is_file() and pooch.hashes.hash_matches(str(path), known_hash):
        return path  # without a lock: the folder may be read-only
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{name}.lock"):
            pooch.retrieve(url, known_hash, fname=name, path=folder, downloader=_Resuming(part, on_bytes))
    except ValueError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"The file from {url} has not the checksum {known_hash} and was deleted ({error}).") from None
    except (OSError, http.client.HTTPException) as error:
        kept = f" {part.stat().st_size:,} bytes are kept; run the same command to resume." if part.exists() else ""
        raise UserError(f"{url} cannot be downloaded: {getattr(error, 'reason', None) or error}.{kept}") from None
    part.unlink(missing_ok=True)
    return path


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for another process that downloads the same file, whose partial download would be mixed with this one."""
    with locked(lock, math.inf, lambda who: _log.warning("%s is downloading into %s; waiting.", who, lock.parent)):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def need(module: str) -> None:
    """Check that a library that only downloads need is installed.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise missing(f"Downloads need {module}, which is not installed", "fetch")


class _Resuming:
    """A downloader for pooch that resumes at the end of `part`, if the server supports it and the file is unchanged."""

    def __init__(self, part: Path, listener: Listener | None) -> None:
        self._part = part
        self._tag = part.with_name(part.name + ".etag")
        self._listener = listener

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:  # noqa: ARG002
        for attempt in range(1, _ATTEMPTS + 1):
            before = self._size()
            try:
                self._go_on(url)
                break
            except urllib.error.HTTPError as error:
                if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                    self._part.unlink()  # longer than the file: it belongs to another one
                    continue
                raise
            except (OSError, http.client.HTTPException):
                if attempt == _ATTEMPTS or self._size() == before:
                    raise
        shutil.copyfile(self._part, output_file)
        self._tag.unlink(missing_ok=True)

    def _go_on(self, url: str) -> None:
        have = self._size()
        request = urllib.request.Request(url, headers={"User-Agent": "viewalign", "Accept-Encoding": "identity"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            if self._tag.exists():
                request.add_header("If-Range", self._tag.read_text())
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if answer.status != http.client.PARTIAL_CONTENT:
                have = 0  # the server cannot resume, or the file has changed
            if tag := answer.headers.get("ETag"):
                self._tag.write_text(tag)
            total = have + int(answer.headers.get("Content-Length") or 0)
            with self._part.open("ab" if have else "wb") as file:
                while piece := answer.read(_PIECE):
                    file.write(piece)
                    have += len(piece)
                    if self._listener:
                        self._listener(have, total)
        if have < total:
            raise http.client.IncompleteRead(b"", total - have)

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0
