"""Datasets that are known by name, and how they are downloaded."""

from __future__ import annotations

import fnmatch
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from viewalign.data.fetch import hub
from viewalign.data.fetch.download import Listener, download
from viewalign.errors import UserError
from viewalign.utils.outputs import check_folder


@dataclass(frozen=True)
class Archive:
    """A dataset in one archive.

    Attributes:
        size: approximate number of bytes.
        top: the dataset's folder in the archive.
    """

    about: str
    licence: str
    cite: str
    url: str
    known_hash: str
    size: int
    top: str


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hub.

    Attributes:
        always: patterns of files that belong to every subset.
        example: a pattern to show.
    """

    about: str
    licence: str
    cite: str
    repository: str
    always: tuple[str, ...]
    example: str


DATASETS: dict[str, Archive | HubDataset] = {
    "hippocampus": Archive(
        "260 MR volumes of one hippocampus each with labels (Medical Segmentation Decathlon, Task 4)",
        "CC BY-SA 4.0",
        "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022",
        "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar",
        "md5:9d24dba78a72977dbd1d2e110310f31b",
        28_000_000,
        "Task04_Hippocampus",
    ),
    "openmind": HubDataset(
        "114,570 head-and-neck MR volumes of 800 OpenNeuro studies, with masks (choose with pattern=)",
        "CC BY 4.0",
        "Wald et al., An OpenMind for 3D medical vision self-supervised learning, arXiv:2412.17041",
        "MIC-DKFZ/OpenMind",
        ("openneuro_metadata.csv", "README.md"),
        "OpenMind/ds001486/*",
    ),
    "fomo60k": HubDataset(
        "60,529 brain MR volumes of 11,187 persons (choose with pattern=; the Hub asks for consent first)",
        "CC BY-NC-SA 4.0, and the licence of each source",
        "Munk et al., A large-scale heterogeneous 3D magnetic resonance brain imaging dataset, arXiv:2506.14432",
        "FOMO25/FOMO60K",
        ("README.md", "participants.tsv"),
        "*sub_1/*",
    ),
    "fomo300k": HubDataset(
        "306,207 brain MR volumes, a zip per session (choose with pattern=; the Hub asks for consent first)",
        "that of each source",
        "Munk et al., A large-scale heterogeneous 3D magnetic resonance brain imaging dataset, arXiv:2506.14432",
        "FOMO-MRI/FOMO300K",
        ("README.md", "*.tsv"),
        "PT001_*",
    ),
}


def known(name: str) -> Archive | HubDataset:
    """Return a dataset by its name.

    Raises:
        UserError: unknown; the message lists the known ones.
    """
    if name not in DATASETS:
        raise UserError(
            f"There is no dataset {name} to fetch. Known: {', '.join(DATASETS)}, and hf:OWNER/NAME. "
            "Weights are fetched by `viewalign fetch weights NAME`."
        )
    return DATASETS[name]


def fetch_archive(dataset: Archive, folder: Path, on_bytes: Listener | None = None) -> bool:
    """Download and unpack a dataset into `folder`; return whether there was anything to do.

    Raises:
        UserError: the folder exists but was not downloaded by this command; or as for `download` and `unpack`.
    """
    mark = folder / ".fetched"
    if mark.is_file() and mark.read_text().strip() == dataset.known_hash:
        return False
    check_folder(folder, "download of these data", False)
    name = dataset.url.rsplit("/", 1)[-1]
    archive = download(dataset.url, folder.parent, name, dataset.known_hash, on_bytes)
    unpacked = folder.with_name(f".{folder.name}.unpacked")
    unpack(archive, unpacked)
    inner = unpacked / dataset.top if (unpacked / dataset.top).is_dir() else unpacked
    (inner / ".fetched").write_text(dataset.known_hash + "\n")
    inner.rename(folder)
    if unpacked.is_dir():
        unpacked.rmdir()
    archive.unlink()
    return True


def subset(dataset: HubDataset, patterns: Sequence[str], endpoint: str | None = None) -> hub.Selection:
    """Select the files of a dataset on the Hub that match, and those of every subset.

    Raises:
        UserError: no pattern, as the whole dataset has terabytes, or one that matches nothing; or as for `hub.select`.
    """
    if not patterns:
        raise UserError(
            f"{dataset.repository} is too large to download as a whole by accident: select files with pattern=, "
            f"such as pattern='{dataset.example}', or pattern='*' for all of it."
        )
    chosen = hub.select(dataset.repository, "dataset", [*patterns, *dataset.always], endpoint)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(file.path, pattern) for file in chosen.files):
            raise UserError(f"Nothing in {dataset.repository} matches {pattern}; a folder is written as FOLDER/*.")
    return chosen


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar (plain or compressed) or zip archive into a folder that does not exist yet.

    Raises:
        UserError: damaged, too large for the disk, or with a path, link or device that leads out of the folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        inside = Path(temporary) / "content"
        inside.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                _unzip(archive, inside)
            else:
                _untar(archive, inside)
        except (tarfile.FilterError, _UnsafeError) as error:
            raise UserError(f"{archive} is not unpacked: it would write outside its folder ({error}).") from None
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise UserError(f"{archive} cannot be unpacked: {error}.") from None
        inside.rename(folder)


class _UnsafeError(Exception):
    """A member of an archive is outside its folder."""


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        _check_room(archive, folder, (member.size for member in members))
        for member in members:
            _check_name(member.name)  # the filter would remove a leading slash silently
        opened.extractall(folder, members=members, filter="data")


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        _check_room(archive, folder, (member.file_size for member in members))
        for member in members:
            _check_name(member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _UnsafeError(f"{member.filename} is a link")
        opened.extractall(folder)


def _check_name(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise _UnsafeError(name)


def _check_room(archive: Path, folder: Path, sizes: Iterable[int]) -> None:
    needed, free = sum(sizes), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{archive} unpacks to {needed:,} bytes; {folder.parent.parent} has {free:,} left.")
