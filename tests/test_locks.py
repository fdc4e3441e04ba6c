"""A lock is held by one process, says by whom, and ends with it."""

import os
import socket
import subprocess
import sys

import pytest

from viewalign.locks import BusyError, locked

HOLD = "import sys, time\nfrom pathlib import Path\nfrom viewalign.locks import locked\n"
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
