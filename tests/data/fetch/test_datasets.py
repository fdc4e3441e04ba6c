from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from local_server import Served

from viewalign.data.fetch.datasets import DATASETS, Archive, fetch_archive, known
from viewalign.errors import UserError


@pytest.fixture
def dataset(served: Served) -> Archive:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("Task/imagesTr/a.nii.gz")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))
    served.files["/task.tar"] = buffer.getvalue()
    digest = hashlib.md5(buffer.getvalue(), usedforsecurity=False).hexdigest()
    return Archive("about", "CC", "who", f"{served.url}/task.tar", f"md5:{digest}", 1, "Task")


def test_an_archive_becomes_a_folder_once(served: Served, dataset: Archive, tmp_path: Path) -> None:
    assert fetch_archive(dataset, tmp_path / "out")
    assert (tmp_path / "out/imagesTr/a.nii.gz").read_bytes() == b"abcd"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert not fetch_archive(dataset, tmp_path / "out")
    assert len(served.asked) == 1


def test_a_folder_of_somebody_else_is_left_alone(dataset: Archive, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(UserError, match=f"{tmp_path / 'out'} is not written: it contains notes.txt"):
        fetch_archive(dataset, tmp_path / "out")


def test_every_known_dataset_has_licence_and_citation() -> None:
    assert set(DATASETS) == {"hippocampus", "openmind", "fomo60k", "fomo300k"}
    assert all(dataset.licence and dataset.cite and dataset.about for dataset in DATASETS.values())
    with pytest.raises(UserError, match="hippocampus, openmind, fomo60k, fomo300k"):
        known("nothing")
