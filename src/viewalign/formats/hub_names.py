"""Weights of the Hugging Face Hub for `init=` and its like: by id into the cache of the Hub, or from a local copy."""

from __future__ import annotations

import re
from pathlib import Path

from viewalign.errors import UserError

_ID = re.compile(r"(?:hf:|https?://huggingface\.co/)([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_BARE_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.safetensors", "*.pth", "*.json", "README.md"]


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
        return _fetch(found[1], found[2])
    local = Path(path)
    if (local / "snapshots").is_dir():
        return _snapshot(local)
    if not local.exists() and _BARE_ID.fullmatch(str(path)) and not local.parent.exists():
        raise UserError(f"There are no weights at {path}. To take them from the Hugging Face Hub, write hf:{path}")
    return local


def _fetch(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
    except RepositoryNotFoundError:
        raise UserError(
            f"The Hugging Face Hub has no {repository}, or it needs a login (`hf auth login` or $HF_TOKEN)."
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{repository} cannot be fetched: the Hugging Face Hub cannot be reached, and nothing of it is cached. "
            "Fetch it on a machine with internet and give the folder."
        ) from None
    except (HfHubHTTPError, OSError) as problem:
        reason = str(problem).strip().splitlines() or [type(problem).__name__]
        raise UserError(f"{repository} cannot be fetched from the Hugging Face Hub: {reason[0]}") from None


def _snapshot(cache: Path) -> Path:
    """Return the snapshot that `main` stands for, else the newest."""
    main = cache / "refs" / "main"
    if main.is_file() and (cache / "snapshots" / main.read_text().strip()).is_dir():
        return cache / "snapshots" / main.read_text().strip()
    snapshots = sorted((cache / "snapshots").iterdir(), key=lambda folder: folder.stat().st_mtime)
    if not snapshots:
        raise UserError(f"{cache} is a folder of the Hub's cache without a snapshot; fetch the model again.")
    return snapshots[-1]
