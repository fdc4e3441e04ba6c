"""The Hugging Face Hub: downloads of files by pattern and of models into the Hub's cache, and upload of exports.

huggingface_hub resumes partial downloads. Only this module uses it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from viewalign.data.fetch.download import Listener, need
from viewalign.errors import UserError
from viewalign.utils.outputs import check_file

Kind = Literal["dataset", "model"]
_WILD = "*?["
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, with the Hub's checksum: SHA-256, or git's for small files."""

    path: str
    size: int
    sha256: str | None
    blob: str


@dataclass(frozen=True)
class Selection:
    """Files to download, at one commit, so that versions are not mixed if the repository changes."""

    repository: str
    kind: Kind
    commit: str
    licence: str
    files: tuple[HubFile, ...]
    endpoint: str | None = None

    @property
    def bytes(self) -> int:
        """Size in all."""
        return sum(file.size for file in self.files)


def select(
    repository: str,
    kind: Kind,
    patterns: Sequence[str] = ("*",),
    endpoint: str | None = None,
    revision: str | None = None,
) -> Selection:
    """List the files of a repository that match; only folders that patterns name without wildcards are listed.

    Args:
        repository: `owner/name`.
        kind: of the repository.
        patterns: shell patterns of whole paths; `*` also matches `/`.
        endpoint: another server than the Hub.
        revision: a branch, tag or commit; None is the newest.

    Raises:
        UserError: no such repository or revision, not allowed, not reachable, or nothing matches.
    """
    need("huggingface_hub")
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint)
    try:
        info: Any = api.repo_info(repository, repo_type=kind, revision=revision)
        found: dict[str, HubFile] = {}
        globs = [pattern for pattern in patterns if any(sign in pattern for sign in _WILD)]
        named = [pattern for pattern in patterns if pattern not in globs]
        entries = list(api.get_paths_info(repository, named, revision=info.sha, repo_type=kind)) if named else []
        for folder in sorted({_fixed_folder(pattern) for pattern in globs}):
            tree = api.list_repo_tree(repository, folder or None, recursive=True, revision=info.sha, repo_type=kind)
            entries.extend(entry for entry in tree if any(fnmatch.fnmatchcase(entry.path, text) for text in globs))
        for entry in entries:
            if isinstance(entry, RepoFile):
                digest = entry.lfs.sha256 if entry.lfs else None
                found[entry.path] = HubFile(entry.path, entry.size, digest, entry.blob_id)
    except Exception as error:  # the Hub's errors have only this base class in common
        raise _said(error, repository, kind) from None
    if not found:
        raise UserError(f"Nothing in {repository} matches {', '.join(patterns)}.")
    licence = str((info.card_data or {}).get("license") or "not stated")
    return Selection(repository, kind, info.sha, licence, tuple(found[path] for path in sorted(found)), endpoint)


def fetch(selection: Selection, folder: Path, on_bytes: Listener | None = None) -> int:
    """Download missing files, check each file, and return how many were downloaded.

    A file that differs from the repository's, such as a table that was edited, gets another name.

    Raises:
        UserError: not reachable, a checksum is wrong, or a path that leads out of the folder.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    done, fetched = 0, 0
    for file in selection.files:
        target = _inside(folder, file.path)
        if not (target.is_file() and target.stat().st_size == file.size and _checksum_holds(target, file)):
            check_file(target, "download", ours=lambda _: (folder / ".cache" / "huggingface").is_dir())
            aside = _put_aside(target) if target.exists() else None
            try:
                hf_hub_download(
                    selection.repository,
                    file.path,
                    repo_type=selection.kind,
                    revision=selection.commit,
                    local_dir=folder,
                    endpoint=selection.endpoint,
                )
            except Exception as error:
                if aside:
                    aside.replace(target)
                raise _said(error, selection.repository, selection.kind) from None
            if aside:
                _log.warning("%s differs from the repository's; it is now %s.", target, aside.name)
            if not _checksum_holds(target, file):
                target.unlink(missing_ok=True)
                raise UserError(f"{file.path} of {selection.repository} has a wrong checksum and was deleted.")
            fetched += 1
        done += file.size
        if on_bytes:
            on_bytes(done, selection.bytes)
    return fetched


def _put_aside(file: Path) -> Path:
    """Rename a file to a name that is free and has no ending of images, and return its new path."""
    numbers = (file.with_name(f"{file.name}.replaced{number or ''}") for number in count())
    free = next(path for path in numbers if not path.exists())
    return file.rename(free)


def cached(
    repository: str,
    revision: str | None = None,
    patterns: Sequence[str] = ("*",),
    endpoint: str | None = None,
    offline: bool = False,
    cache: Path | None = None,
) -> Path:
    """Return a model's folder in the Hub's cache, downloaded first if it is missing or has changed.

    Args:
        repository: `owner/name`.
        revision: a branch, tag or commit; None is the newest.
        patterns: shell patterns of the files.
        endpoint: another server than the Hub.
        offline: use only the cache.
        cache: a folder instead of huggingface_hub's default.

    Raises:
        UserError: no such repository, not allowed, or not reachable and nothing is cached.
    """
    need("huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns), "endpoint": endpoint}
    try:
        return Path(snapshot_download(repository, **wanted, local_files_only=offline, cache_dir=cache))
    except Exception as error:
        raise _said(error, repository, "model") from None


def publish(folder: Path, repository: str, names: Sequence[str], public: bool, endpoint: str | None = None) -> str:
    """Upload files of a folder to a model repository, which is created if missing; return the address of its page.

    Args:
        folder: of the files.
        repository: `owner/name`.
        names: of the files; no others are uploaded.
        public: whether a new repository is public; otherwise private. An existing one keeps
            its visibility.
        endpoint: another server than the Hub.

    Raises:
        UserError: not logged in, not allowed, or not reachable.
    """
    need("huggingface_hub")
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=endpoint)
    try:
        place = api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(names), commit_message="Weights by viewalign"
        )
    except Exception as error:
        raise _not_published(error, repository) from None
    return str(place)


def _not_published(error: Exception, repository: str) -> UserError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, HFValidationError):
        return UserError(f"'{repository}' is not a name of a repository; write OWNER/NAME.")
    if status in (401, 403):
        return UserError(
            f"The Hub denies writing to {repository}: log in with a token that may write (`hf auth login`, or "
            "$HF_TOKEN), and name an owner that is yours."
        )
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(f"{repository} could not be published: {reason[0]}. The export is complete; try again.")


def _inside(folder: Path, path: str) -> Path:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path:
        raise UserError(f"The repository has a file {path}, which would be written outside {folder}.")
    return folder / parts


def _fixed_folder(pattern: str) -> str:
    """Return the folders of a pattern up to the first with a wildcard."""
    fixed = []
    for part in PurePosixPath(pattern).parts[:-1]:
        if any(sign in part for sign in _WILD):
            break
        fixed.append(part)
    return "/".join(fixed)


def _checksum_holds(path: Path, file: HubFile) -> bool:
    if not path.is_file():
        return False
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:
        digest.update(f"blob {path.stat().st_size}\0".encode())  # as git names it
    with path.open("rb") as opened:
        while piece := opened.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.blob)


def _said(error: Exception, repository: str, kind: Kind) -> UserError:
    """Convert errors of huggingface_hub to messages that say what to do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repository}"
    if isinstance(error, UserError):
        return error
    if isinstance(error, GatedRepoError):
        return UserError(f"{repository} asks for consent: accept its terms at {place}, then run `hf auth login`.")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"There is no {kind} {repository} on the Hub, or it is private (`hf auth login`).")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{repository} has no such branch, tag or commit; {place}/commits/main lists them.")
    if isinstance(error, LocalEntryNotFoundError):
        return UserError(
            f"{repository} cannot be downloaded: the Hugging Face Hub cannot be reached, and it is not in the cache. "
            "Download it on a machine with internet and use the path of the folder."
        )
    if isinstance(error, EntryNotFoundError):
        return UserError(
            f"A folder named in a pattern is not in {repository}. Its files are listed at {place}/tree/main."
        )
    return UserError(f"{place} cannot be downloaded: {error}. Complete files are kept; run the same command to resume.")
