"""A lock is held by one process, says by whom, and ends with it."""

import os
import socket
import subprocess
import sys

import pytest

from viewalign.errors import UserError
from viewalign.utils.locks import LOCK, BusyError, lock_folder, locked

HOLD = "import sys, time\nfrom pathlib import Path\nfrom viewalign.utils.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"


def test_another_process_is_named_and_a_dead_one_forgotten(tmp_path):
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


def test_one_that_waits_tells_for_whom_and_gets_its_turn(tmp_path):
    file, told = tmp_path / "lock", []
    brief = HOLD.replace("time.sleep(60)", "sys.stdin.read()")
    other = subprocess.Popen(
        [sys.executable, "-c", brief, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"

    def release(holder):
        told.append(holder)
        other.stdin.close()

    with locked(file, 60, release):
        assert other.wait(60) == 0
    assert told == [f"{socket.gethostname()}, process {other.pid}"]
    assert file.read_text() == "", "nothing of this machine stays"


def test_a_folder_is_held_by_one_and_told_of_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("viewalign.utils.locks._PATIENCE", 0.3)
    with lock_folder(tmp_path / "run"):
        with (
            pytest.raises(UserError, match=rf"process {os.getpid()} is at work in .*run; .*name another folder"),
            lock_folder(tmp_path / "run"),
        ):
            pass
        with lock_folder(tmp_path / "other"):
            pass
    with lock_folder(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).is_file()
