"""Where weights lie on this machine that are named by an id of the Hugging Face Hub, or by a folder of its cache."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from viewalign.data.fetch import hub
from viewalign.data.fetch.download import Listener, download, need
from viewalign.errors import UserError
from viewalign.weights import names as weight_names
from viewalign.weights import sources
from viewalign.weights.names import Family

_ID = re.compile(r"(?:hf:|https?://huggingface\.co/)([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_BARE_ID = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ["*.safetensors", "*.pth", "*.json", "README.md"]
"""What is taken of a repository: never pickles of other kinds, never code."""


def resolve_hub_name(path: str | Path) -> Path:
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
    if main.is_file() and (cache / "snapshots" / main.read_text(encoding="utf-8").strip()).is_dir():
        return cache / "snapshots" / main.read_text(encoding="utf-8").strip()
    snapshots = sorted((cache / "snapshots").iterdir(), key=lambda folder: folder.stat().st_mtime)
    if not snapshots:
        raise UserError(f"{cache} is a folder of the Hub's cache without a snapshot; fetch the model again.")
    return snapshots[-1]


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


_RUNS = 6
"""How many runs a message names at most."""


def resolve_checkpoint(path: str | Path, network: str) -> tuple[Path, str]:
    """Return the path of weights, and a sentence where it is not the one asked for.

    A missing `MAETrainer/fold_all/checkpoint_final.pth`, as in the published command lines, stands for the run of that
    trainer, `MAETrainer__<plans>__<config>/fold_all/checkpoint_final.pth`, that trained the same kind of network. Its
    Primus twin, whose name has "Eva" in it (`MAEEvaTrainer`), counts as the same trainer.

    Args:
        path: what was asked for.
        network: the network to fill, such as "resenc-l" or "primus-m", or its family alone.

    Raises:
        UserError: it is not there, and nothing or more than one thing could be meant, or what is meant is of the other
            kind of network.
    """
    asked = Path(path)
    fold = asked.parent
    if asked.exists() or "__" in fold.parent.name or not fold.name.startswith("fold_"):
        return asked, ""
    runs = sorted(r for r in fold.parent.parent.glob(f"*__*/{fold.name}/{asked.name}") if _meant(r, fold.parent.name))
    if not runs:
        return asked, ""
    family = _family(network)
    fitting = [run for run in runs if _family_in(run) == family]
    if len(fitting) != 1:
        names = ", ".join(run.parent.parent.name for run in (fitting or runs)[:_RUNS])
        why = "all of these could be meant" if fitting else f"of which none is of a {sources.family_words(family)}"
        raise UserError(f"There is no {asked}, only {names}, {why}. Name the checkpoint in full.")
    return fitting[0], f"There is no {fold.parent.name}; {fitting[0].parent.parent.name} is taken."


def _meant(run: Path, trainer: str) -> bool:
    """Say whether a run's folder `<trainer>__<plans>__<config>` is of a trainer or its twin."""
    return _twinless(run.parent.parent.name.split("__")[0]) == _twinless(trainer)


def _twinless(trainer: str) -> str:
    return trainer.replace("Eva", "")


def _family(network: str) -> Family:
    return "primus" if network.startswith("primus") else "resenc"


def _family_in(file: Path) -> Family | None:
    """Return the family of a checkpoint, of which no tensor is read; None where it is unknown."""
    try:
        root = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return weight_names.family_of(root.get("network_weights", root))
    except Exception:
        return None
