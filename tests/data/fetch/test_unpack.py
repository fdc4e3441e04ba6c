from __future__ import annotations

import io
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from viewalign.data.fetch import datasets as unpacking
from viewalign.data.fetch.datasets import unpack
from viewalign.errors import UserError


def tar(path: Path, *members: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_good_archive(tmp_path: Path, mode: str) -> None:
    inner = member("top/link", tarfile.SYMTYPE, "a.txt")
    unpack(tar(tmp_path / "a.tar", member("top/a.txt", size=5), inner, mode=mode), tmp_path / "out")
    assert (tmp_path / "out/top/link").read_bytes() == bytes(5)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.tar", "out"}


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil", size=3),
        member("top/../../evil", size=3),
        member("/evil", size=3),
        member("..\\evil", size=3),
        member("C:/evil", size=3),
        member("link", tarfile.SYMTYPE, "../../etc/passwd"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "../evil"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.linkname}".strip(),
)
def test_nothing_gets_out_of_a_tar(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    archive = tar(folder / "a.tar", member("good", size=3), bad)
    with pytest.raises(UserError, match="outside"):
        unpack(archive, folder / "out")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {
        "deep",
        "deep/er",
        "deep/er/a.tar",
    }


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_nothing_gets_out_of_a_zip(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", "x")
        archive.writestr(zipfile.ZipInfo(name), "x")
    with pytest.raises(UserError, match="outside"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


def test_a_link_in_a_zip_is_rejected_and_a_good_one_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.writestr("top/a.txt", "hello")
    unpack(tmp_path / "good.zip", tmp_path / "out")
    assert (tmp_path / "out/top/a.txt").read_text() == "hello"
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="link"):
        unpack(tmp_path / "bad.zip", tmp_path / "other")


def test_damaged_archives_are_reported(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", member("top/a.txt", size=50_000), mode="w:gz")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.tar\.gz"):
        unpack(archive, tmp_path / "out")
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(UserError, match=r"text\.tar"):
        unpack(tmp_path / "text.tar", tmp_path / "out")


def test_an_archive_larger_than_the_disk_is_rejected_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")(100)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="101 bytes"):
        unpack(tar(tmp_path / "a.tar", member("a", size=101)), tmp_path / "out")


def test_a_zip_whose_sizes_are_false_leaves_nothing(tmp_path: Path) -> None:
    """Sizes are checked against the disk as they are stated; a member with more content than stated is not unpacked."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(1 << 20))
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace((1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"a\.zip"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]
