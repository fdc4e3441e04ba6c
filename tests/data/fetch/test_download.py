from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from pathlib import Path

import pytest
from local_server import Served

from viewalign.data.fetch.download import download
from viewalign.errors import UserError

CONTENT = random.Random(0).randbytes(1_500_000)
HASH = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def get(served: Served, folder: Path, known: str = HASH, **more) -> Path:
    return download(f"{served.url}/file.bin", folder, "file.bin", known, **more)


def test_a_file_comes_whole_and_is_not_fetched_twice(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = CONTENT
    told: list[tuple[int, int]] = []
    path = get(served, tmp_path, on_bytes=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    get(served, tmp_path)
    assert len(served.asked) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_a_broken_connection_is_gone_on_with(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = CONTENT
    served.cut_after = [600_000, 300_000]
    assert get(served, tmp_path).read_bytes() == CONTENT
    assert [asked for _, asked in served.asked] == [None, "bytes=600000-", "bytes=900000-"]


def test_a_killed_fetch_is_gone_on_with_by_the_next(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = CONTENT
    served.cut_after = [700_000, 0]
    with pytest.raises(UserError, match="700,000 bytes"):
        get(served, tmp_path)
    assert not (tmp_path / "file.bin").exists()
    assert get(served, tmp_path).read_bytes() == CONTENT
    assert served.asked[-1][1] == "bytes=700000-"


def test_a_server_that_always_breaks_off_ends_in_an_error_and_keeps_what_came(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = CONTENT
    served.cut_after = [10_000] * 5
    with pytest.raises(UserError, match="50,000 bytes"):
        get(served, tmp_path)
    assert len(served.asked) == 5
    assert not (tmp_path / "file.bin").exists()
    assert get(served, tmp_path).read_bytes() == CONTENT
    assert served.asked[-1][1] == "bytes=50000-"


def test_a_server_that_cannot_resume_starts_again(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = CONTENT
    served.cut_after = [700_000]
    served.resumable = False
    assert get(served, tmp_path).read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_mixed(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = bytes(len(CONTENT))
    served.cut_after = [700_000, 0]
    with pytest.raises(UserError):
        get(served, tmp_path)
    served.files["/file.bin"] = CONTENT
    assert get(served, tmp_path).read_bytes() == CONTENT


def test_leftovers_longer_than_the_file_are_dropped(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = CONTENT
    (tmp_path / ".file.bin.part").write_bytes(bytes(len(CONTENT) + 5))
    assert get(served, tmp_path).read_bytes() == CONTENT


def test_two_downloads_of_one_file_do_not_mix(served: Served, tmp_path: Path, caplog) -> None:
    served.files["/file.bin"] = CONTENT
    second = threading.Thread(target=get, args=(served, tmp_path))

    def begin_second(*_: int) -> None:
        if second.ident is None:
            second.start()
            end = time.monotonic() + 20
            while "waiting" not in caplog.text and len(served.asked) < 2 and time.monotonic() < end:
                time.sleep(0.01)

    assert get(served, tmp_path, on_bytes=begin_second).read_bytes() == CONTENT
    second.join(20)
    assert len(served.asked) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs POSIX permissions, which root ignores")
def test_a_file_in_a_folder_that_is_read_only_is_used(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = CONTENT
    get(served, tmp_path)
    tmp_path.chmod(0o500)
    assert get(served, tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(served: Served, tmp_path: Path) -> None:
    served.files["/file.bin"] = CONTENT[:-1] + b"\0"
    with pytest.raises(UserError, match="sha256:"):
        get(served, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_unreachable_files_are_reported(served: Served, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Not Found"):
        get(served, tmp_path)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/file\.bin"):
        download("http://127.0.0.1:1/file.bin", tmp_path, "file.bin", HASH)
