"""Files whose content was not downloaded: links and pointers of git-annex and Git LFS."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_LONGEST = 1024
_ANNEX = "its content was not downloaded: it is a git-annex link (run `datalad get` or `git annex get` on it)"
_LFS = "its content was not downloaded: it is a Git LFS pointer (run `git lfs pull`)"
NOT_DOWNLOADED = "its content was not downloaded"


def missing_content(path: Path) -> str | None:
    """Return why a file has no content and the command that fetches it; None if it has content.

    Only files of up to 1,024 bytes are read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST:
            return None
        text = path.read_bytes()
    except OSError as error:
        return _broken_link(path, error)
    if text.startswith(b"version https://git-lfs"):
        return _LFS
    return _ANNEX if b"annex/objects/" in text.split(b"\n", 1)[0] else None


def _broken_link(path: Path, error: OSError) -> str | None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) or not path.is_symlink():
        return None
    if error.errno == errno.ELOOP:
        return "the link is broken: it leads back to itself"
    target = os.readlink(path)  # noqa: PTH115
    return _ANNEX if "annex/objects" in target else "the link is broken: it points to a file that does not exist"
