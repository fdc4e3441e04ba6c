"""Local paths of weights that are named by a public encoder, or an id of the Hugging Face Hub or Zenodo.

Only this module turns a user's name of an encoder into a path; `weights.reading` reads it.
"""

from __future__ import annotations

import glob
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from viewalign.data.fetch import hub
from viewalign.data.fetch.download import TIMEOUT, Listener, download, need
from viewalign.errors import UserError
from viewalign.utils.overrides import similar
from viewalign.weights.files import sha256_of
from viewalign.weights.published import ENCODERS, PublishedEncoder

WANTED = ("*.pth", "*.safetensors", "*.ckpt", "*.json", "*.md", "LICENSE*")
"""Files that are downloaded from a repository: no other pickles, no code."""
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".ckpt")
_ID = re.compile(
    r"(?:hf:|https?://huggingface\.co/)([\w.-]+/[\w.-]+?)(?:(?:@|/(?:blob|resolve|tree)/)([\w.-]+))?"
    r"(?:/(.+\.\w+))?/?(?:\?.*)?"
)
_RECORD = re.compile(r"zenodo:(\d+)(?:/([^/]+))?")
_BARE_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ZENODO = "https://zenodo.org"


def is_offline() -> bool:
    """Return whether downloads are off: `viewalign --offline`, `VIEWALIGN_OFFLINE` or `HF_HUB_OFFLINE` is set."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("VIEWALIGN_OFFLINE", "HF_HUB_OFFLINE"))


def cache_folder() -> Path:
    """Return the folder of downloaded encoders: `VIEWALIGN_CACHE`, else `viewalign` in the user's cache folder."""
    return Path(os.environ.get("VIEWALIGN_CACHE") or Path.home() / ".cache" / "viewalign")


def locate(source: str | Path) -> Path:
    """Return the local path of weights; missing ones are downloaded.

    A name of `published.ENCODERS`, `hf:OWNER/NAME[@REVISION][/FILE]`, the address of a model's page on the Hub and
    `zenodo:RECORD[/FILE]` are fetched, or taken from the cache. A folder of the Hub's cache (`models--OWNER--NAME`)
    means its newest snapshot. Any other path is returned unchanged, even if it does not exist.

    Raises:
        UserError: an unknown name, a source that is neither reachable nor in the cache, or a file with another checksum
            than the recorded one.
    """
    name = str(source)
    if name in ENCODERS and not Path(name).exists():
        return _locate_published(name, ENCODERS[name])
    if found := _ID.fullmatch(name):
        return _locate_on_hub(found[1], found[2], found[3])
    if found := _RECORD.fullmatch(name):
        return _locate_on_zenodo(found[1], found[2])
    local = Path(source)
    if (local / "snapshots").is_dir():
        return _snapshot(local)
    if not local.exists() and _BARE_ID.fullmatch(name) and not local.parent.exists():
        raise UserError(f"There are no weights at {name}. To take them from the Hugging Face Hub, write hf:{name}")
    if not local.exists() and (near := similar(name, ENCODERS, 0.8)):
        raise UserError(f"There is nothing at {name}{near}. `viewalign encoders` lists the public encoders.")
    return local


def _locate_published(name: str, entry: PublishedEncoder) -> Path:
    if not entry.network:
        raise UserError(f"{name} is a collection of files; write {entry.source}/FILE, with the path of one of them.")
    path = locate(entry.source)
    file = path if path.is_file() else path / "checkpoint_final.pth"
    if entry.sha256 and (not file.is_file() or sha256_of(file) != entry.sha256):
        raise UserError(
            f"{file} is not the known file of {name}: its SHA-256 is not {entry.sha256}. It is damaged, or was "
            f"published again; remove it to download it again, or write {entry.source} to use it."
        )
    return path


def _locate_on_hub(repository: str, revision: str | None, file: str | None) -> Path:
    if file is not None and (".." in PurePosixPath(file).parts or not file.endswith(WEIGHT_SUFFIXES)):
        raise UserError(f"{file} of {repository} is not a file of weights; these end in {', '.join(WEIGHT_SUFFIXES)}.")
    own = os.environ.get("VIEWALIGN_CACHE")
    wanted = WANTED if file is None else (file, str(PurePosixPath(file).with_name("*.json")))
    folder = hub.cached(repository, revision, wanted, offline=is_offline(), cache=Path(own) / "hub" if own else None)
    if file is not None and not (folder / file).is_file():
        raise UserError(f"There is no {file} in {repository}.")
    return folder if file is None else folder / file


def _locate_on_zenodo(number: str, file: str | None) -> Path:
    folder = cache_folder() / "zenodo" / number
    source = f"zenodo:{number}" + (f"/{file}" if file else "")
    done = folder / (file or ".complete")
    if not done.is_file():  # a download gets its name once it is complete
        if is_offline():
            raise UserError(
                f"{source} is not in {folder}, and downloads are off. Download it on a machine with internet "
                "and copy the folder, or set VIEWALIGN_CACHE to its place."
            )
        fetch_weights(find_weights(source), folder)
        if file is None:
            done.touch()
    return folder if file is None else done


def _snapshot(cache: Path) -> Path:
    """Return the snapshot of `main`, otherwise the newest."""
    main = cache / "refs" / "main"
    if main.is_file() and (cache / "snapshots" / main.read_text(encoding="utf-8").strip()).is_dir():
        return cache / "snapshots" / main.read_text(encoding="utf-8").strip()
    snapshots = sorted((cache / "snapshots").iterdir(), key=lambda folder: folder.stat().st_mtime)
    if not snapshots:
        raise UserError(f"{cache} is a folder of the Hub's cache without a snapshot; download the model again.")
    return snapshots[-1]


@dataclass(frozen=True)
class ZenodoFile:
    """A file of a record, with the checksum that Zenodo states, such as `md5:…`."""

    name: str
    url: str
    size: int
    known_hash: str


@dataclass(frozen=True)
class ZenodoRecord:
    """A record on Zenodo."""

    title: str
    licence: str
    files: tuple[ZenodoFile, ...]

    @property
    def bytes(self) -> int:
        """Size in all."""
        return sum(file.size for file in self.files)


def find_weights(
    requested: str, patterns: tuple[str, ...] = (), hub_endpoint: str | None = None, zenodo: str | None = None
) -> hub.Selection | ZenodoRecord:
    """Look up a name, `hf:OWNER/NAME[@REVISION][/FILE]` or `zenodo:RECORD[/FILE]`.

    Args:
        requested: what is looked up.
        patterns: shell patterns of the files; by default FILE, otherwise the weights on the Hub, and all of a record.
        hub_endpoint, zenodo: addresses of other servers.

    Raises:
        UserError: unknown, not reachable, or without weights.
    """
    place = ENCODERS[requested].source if requested in ENCODERS else requested
    found = _ID.fullmatch(place)
    if found and not {".", ".."} & set(found[1].split("/")):
        wanted = patterns or ((found[3],) if found[3] else WANTED)
        return hub.select(found[1], "model", wanted, hub_endpoint, found[2])
    if found := _RECORD.fullmatch(place):
        need("pooch")
        wanted = patterns or ((glob.escape(found[2]),) if found[2] else ("*",))
        return _matching(_record(found[1], zenodo or _ZENODO), wanted, place)
    raise UserError(f"There are no weights {requested}. Known: {', '.join(ENCODERS)}, hf:OWNER/NAME and zenodo:NUMBER.")


def _matching(record: ZenodoRecord, patterns: tuple[str, ...], place: str) -> ZenodoRecord:
    files = tuple(file for file in record.files if any(fnmatchcase(file.name, pattern) for pattern in patterns))
    if not files:
        names = ", ".join(file.name for file in record.files)
        raise UserError(f"No file of {place} is named {', '.join(patterns)}; there are {names}.")
    return replace(record, files=files)


def fetch_weights(found: hub.Selection | ZenodoRecord, folder: Path, on_bytes: Listener | None = None) -> int:
    """Download weights into a folder, check each file, and return how many were downloaded.

    Raises:
        UserError: not reachable, or a checksum is wrong.
    """
    if isinstance(found, hub.Selection):
        return hub.fetch(found, folder, on_bytes)
    before = 0
    for file in found.files:

        def listen(now: int, _: int, before: int = before) -> None:
            if on_bytes:
                on_bytes(before + now, found.bytes)

        download(file.url, folder, file.name, file.known_hash, listen)
        before += file.size
    return len(found.files)


def _record(number: str, server: str) -> ZenodoRecord:
    url = f"{server}/api/records/{number}"
    try:
        request = urllib.request.Request(url, headers={"Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            raw = json.load(answer)
        files = tuple(_file(entry) for entry in raw["files"])
        metadata = raw.get("metadata") or {}
        licence = str((metadata.get("license") or {}).get("id", "?"))
    except urllib.error.HTTPError as error:
        raise UserError(f"There is no open record {number} on Zenodo ({error.code} {error.reason}).") from None
    except OSError as error:
        raise UserError(f"{url} cannot be reached: {getattr(error, 'reason', error)}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The answer of {url} is not a valid record ({type(error).__name__}: {error}).") from None
    if not files:
        raise UserError(f"The record {number} on Zenodo has no open files.")
    return ZenodoRecord(str(metadata.get("title", number)), licence, files)


def _file(entry: dict[str, Any]) -> ZenodoFile:
    name = str(entry["key"])
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"The record has a file {name}, which would be written outside its folder.")
    checksum = str(entry["checksum"])
    if not re.fullmatch(r"(md5|sha256):[0-9a-f]+", checksum):
        raise UserError(f"The record states no checksum that can be checked for {name}: {checksum}.")
    return ZenodoFile(name, str(entry["links"]["self"]), int(entry["size"]), checksum)
