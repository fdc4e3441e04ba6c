"""Published weights from the net: by a known name, from the Hub (`hf:OWNER/NAME`) or from Zenodo (`zenodo:RECORD`)."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.volumes.fetching import hub
from viewalign.volumes.fetching.download import Listener, download, need

WEIGHTS = {
    "openmind-mae-resenc-l": "hf:MIC-DKFZ/ResEncL-OpenMind-MAE",
    "openmind-mae-primus-m": "hf:MIC-DKFZ/PrimusM-OpenMind-MAE",
    "openmind-mae": "zenodo:15235730",
    "ssl3d": "hf:MIC-DKFZ/SSL3D-checkpoints",
}
"""Names for what people ask for most: nnssl's MAE checkpoints, and what the teams of the SSL3D challenge handed in."""
_WANTED = ("*.pth", "*.safetensors", "*.json", "*.md", "LICENSE*")  # never pickles of other kinds, never code
_ZENODO = "https://zenodo.org"


@dataclass(frozen=True)
class ZenodoFile:
    """A file of a record, with the checksum that Zenodo states, such as `md5:…`."""

    name: str
    url: str
    size: int
    known_hash: str


@dataclass(frozen=True)
class ZenodoRecord:
    """What a record on Zenodo holds."""

    title: str
    licence: str
    files: tuple[ZenodoFile, ...]

    @property
    def bytes(self) -> int:
        """Size in all."""
        return sum(file.size for file in self.files)


def find_weights(
    asked: str, patterns: tuple[str, ...] = (), hub_endpoint: str | None = None, zenodo: str = _ZENODO
) -> hub.Selection | ZenodoRecord:
    """Look up what a name, `hf:OWNER/NAME` or `zenodo:RECORD` stands for.

    Raises:
        UserError: unknown, not reachable, or nothing in it is weights.
    """
    scheme, _, place = WEIGHTS.get(asked, asked).partition(":")
    if scheme == "hf" and re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        return hub.select(place, "model", patterns or _WANTED, hub_endpoint)
    if scheme == "zenodo" and place.isdecimal():
        need("pooch")
        return _record(place, zenodo)
    raise UserError(f"There are no weights {asked}. Known: {', '.join(WEIGHTS)}, hf:OWNER/NAME and zenodo:NUMBER.")


def fetch_weights(found: hub.Selection | ZenodoRecord, folder: Path, on_bytes: Listener | None = None) -> int:
    """Fetch weights into a folder, each file checked, and return how many were fetched.

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
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": "application/json"})) as answer:
            raw = json.load(answer)
        files = tuple(_file(entry) for entry in raw["files"])
        metadata = raw.get("metadata", {})
    except urllib.error.HTTPError as error:
        raise UserError(f"There is no open record {number} on Zenodo ({error.code} {error.reason}).") from None
    except OSError as error:
        raise UserError(f"{url} cannot be reached: {getattr(error, 'reason', error)}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{url} gave no record that can be read ({type(error).__name__}: {error}).") from None
    if not files:
        raise UserError(f"The record {number} on Zenodo has no open files.")
    return ZenodoRecord(str(metadata.get("title", number)), str(metadata.get("license", {}).get("id", "?")), files)


def _file(entry: dict[str, Any]) -> ZenodoFile:
    name = str(entry["key"])
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"The record has a file {name}, which would be written outside its folder.")
    checksum = str(entry["checksum"])
    if not re.fullmatch(r"(md5|sha256):[0-9a-f]+", checksum):
        raise UserError(f"The record states no checksum that can be checked for {name}: {checksum}.")
    return ZenodoFile(name, str(entry["links"]["self"]), int(entry["size"]), checksum)
