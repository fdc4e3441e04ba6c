from __future__ import annotations

import random
from pathlib import Path

import pytest
from local_server import COMMIT, Served

from viewalign.data.fetch import hub
from viewalign.data.fetch.datasets import HubDataset, subset
from viewalign.errors import UserError

LARGE = random.Random(0).randbytes(3000)
FILES = {
    "README.md": b"a dataset",
    "openneuro_metadata.csv": b"image_path\n",
    "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz": LARGE,
    "OpenMind/ds000001/sub-02/anat/sub-02_T1w.nii.gz": LARGE + b"2",
    "OpenMind/ds000002/sub-01/anat/sub-01_T2w.nii.gz": LARGE + b"3",
}
DATASET = HubDataset("", "", "", "owner/openmind", ("README.md", "openneuro_metadata.csv"), "")


@pytest.fixture
def server(served: Served) -> Served:
    served.hub["owner/openmind"] = dict(FILES)
    return served


def test_a_subset_is_chosen_at_one_commit_and_only_its_folder_is_listed(server: Served) -> None:
    chosen = subset(DATASET, ["OpenMind/ds000001/*sub-01*"], server.url)
    assert [file.path for file in chosen.files] == [
        "OpenMind/ds000001/sub-01/anat/sub-01_T1w.nii.gz",
        "README.md",
        "openneuro_metadata.csv",
    ]
    assert (chosen.commit, chosen.licence) == (COMMIT, "cc-by-4.0")
    assert chosen.bytes == 3000 + 9 + 11
    assert server.listed == ["OpenMind/ds000001"]


def test_a_pattern_without_a_file_is_an_error_beside_the_files_of_every_subset(server: Served) -> None:
    with pytest.raises(UserError, match=r"Nothing in owner/openmind matches OpenMind/ds000001;.*FOLDER/\*"):
        subset(DATASET, ["OpenMind/ds000001"], server.url)


def test_files_come_once_and_are_checked(server: Served, tmp_path: Path) -> None:
    chosen = subset(DATASET, ["OpenMind/ds000001/*"], server.url)
    told: list[tuple[int, int]] = []
    assert hub.fetch(chosen, tmp_path, lambda *numbers: told.append(numbers)) == 4
    assert (tmp_path / "OpenMind/ds000001/sub-02/anat/sub-02_T1w.nii.gz").read_bytes() == LARGE + b"2"
    assert told[-1] == (chosen.bytes, chosen.bytes)
    assert hub.fetch(chosen, tmp_path) == 0
    (tmp_path / "README.md").write_bytes(b"A dataset")
    assert hub.fetch(chosen, tmp_path) == 1
    assert (tmp_path / "README.md").read_bytes() == b"a dataset"
    assert (tmp_path / "README.md.replaced").read_bytes() == b"A dataset", "an edited file is not lost"
    (tmp_path / "README.md").write_bytes(b"edited")
    assert hub.fetch(chosen, tmp_path) == 1
    assert (tmp_path / "README.md.replaced1").read_bytes() == b"edited"


@pytest.mark.parametrize("name", ["README.md", "OpenMind/ds000002/sub-01/anat/sub-01_T2w.nii.gz"])
def test_a_wrong_checksum_is_thrown_away(server: Served, tmp_path: Path, name: str) -> None:
    server.broken.add(name)
    with pytest.raises(UserError, match="checksum"):
        hub.fetch(hub.select("owner/openmind", "dataset", [name], server.url), tmp_path)
    assert not (tmp_path / name).exists()


def test_a_path_that_leads_out_is_rejected(server: Served, tmp_path: Path) -> None:
    server.hub["owner/openmind"]["../evil.txt"] = b"x"
    chosen = hub.select("owner/openmind", "dataset", ["*evil*"], server.url)
    with pytest.raises(UserError, match="outside"):
        hub.fetch(chosen, tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def test_unavailable_repositories_are_reported(server: Served) -> None:
    with pytest.raises(UserError, match="owner/none"):
        hub.select("owner/none", "dataset", ["*"], server.url)
    with pytest.raises(UserError, match=r"owner/openmind.*\*\.mha"):
        hub.select("owner/openmind", "dataset", ["*.mha"], server.url)
    with pytest.raises(UserError, match=r"pattern.*owner/openmind"):
        hub.select("owner/openmind", "dataset", ["nowhere/*"], server.url)
    server.gated.add("owner/openmind")
    with pytest.raises(UserError, match="hf auth login"):
        hub.select("owner/openmind", "dataset", ["*"], server.url)


def test_all_of_a_large_dataset_must_be_requested() -> None:
    with pytest.raises(UserError, match="pattern="):
        subset(DATASET, [])
