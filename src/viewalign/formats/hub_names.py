"""Where weights lie on this machine that are named by an id of the Hugging Face Hub, or by a folder of its cache."""

from __future__ import annotations

import re
from pathlib import Path

from viewalign.errors import UserError
from viewalign.volumes.fetching import hub

_ID = re.compile(r"(?:hf:|https?://huggingface\.co/)([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_BARE_ID = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ["*.safetensors", "*.pth", "*.json", "README.md"]
"""What is taken of a repository: never pickles of other kinds, never code."""


def resolve(path: str | Path) -> Path:
    """Return where weights lie on this machine.

    `hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION` and the address of a model's page are fetched from the Hub, or taken from
    its cache where that has them and the network is away. A folder of that cache (`models--OWNER--NAME`) stands for its
    newest snapshot. Any other path is returned as it is, whether or not something is there.

    Raises:
        UserError: the Hub has nothing of that name, or cannot be reached and nothing is cached.
    """
    found = _ID.fullmatch(str(path))
    if found:
        return hub.cached(found[1], found[2], WANTED)
    local = Path(path)
    if (local / "snapshots").is_dir():
        return _snapshot(local)
    if not local.exists() and _BARE_ID.fullmatch(str(path)) and not local.parent.exists():
        raise UserError(f"There are no weights at {path}. To take them from the Hugging Face Hub, write hf:{path}")
    return local


def _snapshot(cache: Path) -> Path:
    """Return the snapshot that `main` stands for, else the newest."""
    main = cache / "refs" / "main"
    if main.is_file() and (cache / "snapshots" / main.read_text().strip()).is_dir():
        return cache / "snapshots" / main.read_text().strip()
    snapshots = sorted((cache / "snapshots").iterdir(), key=lambda folder: folder.stat().st_mtime)
    if not snapshots:
        raise UserError(f"{cache} is a folder of the Hub's cache without a snapshot; fetch the model again.")
    return snapshots[-1]
