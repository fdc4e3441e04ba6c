"""Files are whole or not there, and as readable as the umask lets others read."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from viewalign.errors import UserError
from viewalign.utils.io import atomic_write, check_file_name, visible, write_json, write_tensors


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "/etc/a", "a/b", "a\\b", "a\0b", "a\nb", ".hidden", "x" * 300, "é" * 150]
)
def test_names_that_would_be_paths_are_rejected(name):
    with pytest.raises(UserError, match="name"):
        check_file_name(name)


@pytest.mark.parametrize("name", ["a", "sub-01_ses-2", "Fall 7 (links)", "é" * 90, "a..b"])
def test_names_that_are_names_pass(name):
    check_file_name(name)


def test_text_of_files_cannot_command_a_terminal():
    assert visible("a\x1b[2J\x07b\x9bc\td\né×") == "a\\x1b[2J\\x07b\\x9bc\td\né×"


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fill():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_ends_well_takes_the_place(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with atomic_write(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_tensors_are_restored_and_the_umask_sets_permissions(tmp_path, mask, mode):
    tensors = {"a": torch.arange(12.0).reshape(3, 4).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    before = os.umask(mask)
    try:
        write_tensors(tensors, tmp_path / "weights.safetensors")
    finally:
        os.umask(before)
    read = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert stat.S_IMODE((tmp_path / "weights.safetensors").stat().st_mode) == mode


def test_numbers_that_are_not_defined_are_null_in_json(tmp_path):
    write_json(tmp_path / "a.json", {"auroc": float("nan"), "list": [float("-inf"), 1.5], "n": 1})

    def refuse(name):
        raise AssertionError(name)

    tree = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert tree == {"auroc": None, "list": [None, 1.5], "n": 1}
