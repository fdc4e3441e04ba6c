"""Archives unpacked so that nothing can land outside their folder, and never half."""

from __future__ import annotations

import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from viewalign.errors import UserError


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
    """An archive wants out."""


def _untar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        _check_room(archive, folder, (member.size for member in members))
        for member in members:
            _check_name(member.name)  # the filter would strip a leading slash in silence
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
