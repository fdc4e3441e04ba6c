"""A lock is held by one process, names it, and ends with it."""

import errno
import os
import socket
import subprocess
import sys

import pytest
from filelock import FileLock

from viewalign.errors import UserError
from viewalign.utils.locks import LOCK, BusyError, lock_folder, locked

HOLD = "import sys, time\nfrom pathlib import Path\nfrom viewalign.utils.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("viewalign.utils.locks._PATIENCE", 0.3)


def test_another_process_is_named_and_the_lock_of_a_killed_process_is_free(tmp_path):
    file = tmp_path / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(BusyError, match=f"{socket.gethostname()}, process {other.pid}"), locked(file):
        pass
    other.kill()
    other.wait()
    with locked(file):
        assert str(os.getpid()) in file.read_text()
        with pytest.raises(BusyError), locked(file):
            pass
    with locked(file):
        pass


def test_a_waiting_process_reports_the_holder_once_and_gets_the_lock(tmp_path):
    file, reported = tmp_path / "lock", []
    brief = HOLD.replace("time.sleep(60)", "sys.stdin.read()")
    other = subprocess.Popen(
        [sys.executable, "-c", brief, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"

    def release(holder):
        reported.append(holder)
        other.stdin.close()

    with locked(file, 60, release):
        assert other.wait(60) == 0
    assert reported == [f"{socket.gethostname()}, process {other.pid}"]
    assert file.read_text().strip("\0") == "", "nothing of this machine stays"


def test_a_folder_is_held_by_one_process(tmp_path, impatient):
    with lock_folder(tmp_path / "run"):
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()}\b.*run"),
            lock_folder(tmp_path / "run"),
        ):
            pass
        with lock_folder(tmp_path / "other"):
            pass
    with lock_folder(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).is_file()


def test_parts_hold_a_folder_together_and_leave_no_file(tmp_path, impatient):
    with lock_folder(tmp_path, "a"), lock_folder(tmp_path, "b"):
        for part in ("", "a"):
            with pytest.raises(UserError), lock_folder(tmp_path, part):
                pass
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    (tmp_path / f"{LOCK}-killed").touch()
    with lock_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        with pytest.raises(UserError), lock_folder(tmp_path, "a"):
            pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with lock_folder(tmp_path), lock_folder(tmp_path):
        assert "file system without locks" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] in ([LOCK], [])


def test_other_errors_are_raised(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(PermissionError), locked(tmp_path / "lock"):
        pass


def test_a_file_or_a_broken_link_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(UserError, match=f"{name} is a file or a broken link"), lock_folder(tmp_path / name):
            pass
