from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from bad_files import array, save, volume
from dicom_files import write_series

from viewalign.data import duplicates
from viewalign.data.duplicates import find_duplicates
from viewalign.data.readers.dicom_folders import stack_of


def test_the_same_content_is_found_plain_and_packed_with_any_name_date_and_level(tmp_path: Path) -> None:
    save(tmp_path / "a.nii", array())
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content, 1, mtime=1))
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(content, 9, mtime=2))
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(content[:-1] + b"\0", 9))
    names = "a.nii", "b.nii.gz", "c.nii.gz", "d.nii.gz"
    assert find_duplicates([tmp_path / name for name in names]) == [[tmp_path / name for name in names[:3]]]


def test_plain_files_that_agree_at_both_ends_are_read_whole(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(size=(40, 50, 60)).astype(np.float32)
    other = voxels.copy()
    other[20] += 1
    for name, values in (("a.mha", voxels), ("b.mha", voxels), ("c.mha", other)):
        save(tmp_path / name, values)
    assert (tmp_path / "a.mha").stat().st_size > 3 * 65536
    names = ("a.mha", "b.mha", "c.mha")
    assert find_duplicates([tmp_path / name for name in names]) == [[tmp_path / "a.mha", tmp_path / "b.mha"]]


def test_a_series_copied_to_another_folder_is_found(tmp_path: Path) -> None:
    first = write_series(tmp_path / "a", volume())
    (tmp_path / "b").mkdir()
    for path in first:
        (tmp_path / "b" / f"x{path.name}").write_bytes(path.read_bytes())
    write_series(tmp_path / "c", volume())
    firsts = [min((tmp_path / folder).iterdir()) for folder in "abc"]
    slices = {path: stack_of(path).frames for path in firsts}
    assert find_duplicates(firsts, slices) == [firsts[:2]]


def test_plain_and_packed_files_that_differ_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.nii", array())
    save(tmp_path / "b.nii.gz", array() + 1)
    monkeypatch.setattr(duplicates, "_whole_key", lambda path, _: pytest.fail(f"{path} was read whole"))
    assert find_duplicates([tmp_path / "a.nii", tmp_path / "b.nii.gz"]) == []


def test_files_that_differ_are_never_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(3):
        save(tmp_path / f"{k}.nii.gz", array() + k)
    monkeypatch.setattr(duplicates, "_whole_key", lambda path, _: pytest.fail(f"{path} was read whole"))
    assert find_duplicates(sorted(tmp_path.iterdir())) == []
