"""Checkpoints that were damaged after they were written are detected, renamed and written again."""

import json
import os
from pathlib import Path

import pytest
import torch

from viewalign.errors import DamageWarning, UserError
from viewalign.weights import checkpoints

STATE = {"method": {"weight": torch.arange(4000.0)}, "position": {"step": 2}}


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        checkpoints.save(tmp_path, step, STATE)
    return tmp_path


def flip(path, place, bit=0):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_single_flipped_bit_is_seen(folder, share):
    file = checkpoints.path_of(folder, 4) / "state.pt"
    flip(file, int(share * file.stat().st_size), bit=3)
    with pytest.raises(checkpoints.DamagedCheckpointError, match=r"step_00000004.*SHA-256"):
        checkpoints.load(file.parent)


@pytest.mark.parametrize("file", ["state.pt", "checkpoint.json"])
@pytest.mark.parametrize("fault", [lambda path: path.unlink(), lambda path: path.write_bytes(b"[1"), os.truncate])
def test_the_newest_that_is_not_damaged_is_used_with_a_warning(folder, file, fault):
    path = checkpoints.path_of(folder, 4) / file
    fault(path, path.stat().st_size // 2) if fault is os.truncate else fault(path)
    with pytest.warns(DamageWarning) as warned:
        assert checkpoints.load_newest(folder)["step"] == 2
    assert "step_00000004 is damaged" in str(warned[0].message)
    assert "of step 2 is used instead" in str(warned[1].message)
    assert checkpoints.steps(folder) == [2, 4], "who only reads changes nothing"


def test_a_run_that_resumes_keeps_the_damaged_one_aside_and_writes_it_again(folder):
    flip(checkpoints.path_of(folder, 4) / "state.pt", 2000)
    said = []
    assert checkpoints.resume_newest(folder, said.append)["step"] == 2
    assert checkpoints.steps(folder) == [2]
    assert (folder / "step_00000004.damaged" / "state.pt").is_file()
    checkpoints.save(folder, 4, STATE)
    assert checkpoints.load_newest(folder, said.append)["step"] == 4
    assert len(said) == 2


def test_saving_a_step_that_is_there_replaces_it_only_if_it_is_damaged(folder):
    file = checkpoints.path_of(folder, 4) / "state.pt"
    inode = file.stat().st_ino
    checkpoints.save(folder, 4, STATE)
    assert file.stat().st_ino == inode
    for _ in range(2):
        file.write_bytes(b"")
        checkpoints.save(folder, 4, STATE)
        assert checkpoints.load(file.parent)["step"] == 4
    assert {path.name for path in folder.iterdir()} == {
        *("step_00000002", "step_00000004", "step_00000004.damaged", "step_00000004.damaged-2")
    }


def test_one_of_a_newer_format_is_rejected_and_not_called_damaged(folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    with pytest.raises(UserError, match=r"format 1.* 2"):
        checkpoints.resume_newest(folder)
    assert checkpoints.steps(folder) == [2, 4]


def test_folders_of_other_names_are_ignored(folder):
    for name in ("step_00000004.bak", "step_4", "step_", "step_x", "copy of step_00000004"):
        (folder / name).mkdir()
    (folder / "step_00000009").write_text("a file")
    assert checkpoints.steps(folder) == [2, 4]
    checkpoints.prune(folder, 1)
    assert checkpoints.steps(folder) == [4]


def test_the_digest_is_that_of_the_file(folder):
    import hashlib

    path = checkpoints.path_of(folder, 4)
    facts = json.loads((path / "checkpoint.json").read_text())
    assert facts["sha256"] == hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()


def test_files_are_on_the_disk_before_their_folder_has_its_name(tmp_path, monkeypatch):
    flushed, sync, rename = [], os.fsync, Path.rename

    def note(handle):
        flushed.append(os.fstat(handle).st_ino)
        sync(handle)

    def check(path, target):
        assert sorted(flushed) == sorted(file.stat().st_ino for file in path.iterdir())
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", check)
    assert checkpoints.save(tmp_path, 2, STATE).is_dir()
    assert flushed[2:] == [tmp_path.stat().st_ino], "the name itself"
