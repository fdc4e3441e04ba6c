"""Files whose content was not downloaded: links and pointers of git-annex and Git LFS."""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST = 1024
_ANNEX = "its content was not downloaded: it is a git-annex link (run `datalad get` or `git annex get` on it)"
_LFS = "its content was not downloaded: it is a Git LFS pointer (run `git lfs pull`)"
NOT_DOWNLOADED = "its content was not downloaded"


def missing_content(path: Path) -> str | None:
    """Return why a file has no content and the command that fetches it; None if it has content.

    Only files of up to 1,024 bytes are read.
    """
    if path.is_symlink() and not path.exists():
        if "annex/objects" in os.readlink(path):  # noqa: PTH115
            return _ANNEX
        return "the link is broken: it points to a file that does not exist"
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST:
            return None
        text = path.read_bytes()
    except OSError:
        return None
    if text.startswith(b"version https://git-lfs"):
        return _LFS
    return _ANNEX if b"annex/objects/" in text.split(b"\n", 1)[0] else None
