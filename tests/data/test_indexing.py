from __future__ import annotations

import re
from pathlib import Path

import pytest

from viewalign.data import indexing
from viewalign.data.indexing import index_sources, read_excluded, write_excluded
from viewalign.data.sources import Exclusion, FindOptions
from viewalign.errors import UserError


@pytest.fixture
def scans(tmp_path: Path, write_image, make_head) -> Path:
    for name in ("sub-01/ses-1/T1w.nii.gz", "sub-01/ses-2/T1w.nii.gz", "sub-02/ses-1/FLAIR.nii.gz", "labels/a.nii.gz"):
        write_image(tmp_path / "scans" / name, make_head())
    (tmp_path / "scans" / "readme.txt").write_text("hello")
    (tmp_path / "scans" / "._hidden.nii.gz").write_text("resource fork")
    return tmp_path / "scans"


def test_a_folder_is_searched_with_all_below(scans: Path) -> None:
    index = index_sources([str(scans)])
    assert (index.subjects(), index.sessions(), index.images) == (2, 3, 3)
    assert dict(index.modalities) == {"T1w": 2, "FLAIR": 1}
    assert (len(index.label_files), dict(index.other_files), index.excluded) == (1, {".txt": 1}, [])
    ids = [record.image_id for record in index.collection.records()]
    assert ids[0] == "viewalign__scans__sub-01__ses-1__T1w"
    assert len(set(ids)) == 3


def test_label_maps_can_be_taken_in(scans: Path) -> None:
    assert index_sources([str(scans)], FindOptions(labels=True)).images == 4


def test_patterns_files_and_repeated_sources(scans: Path) -> None:
    one = str(scans / "sub-02/ses-1/FLAIR.nii.gz")
    assert index_sources([str(scans / "*" / "*" / "T1w.nii.gz")]).images == 2
    assert index_sources([one]).images == 1
    assert index_sources([str(scans), one]).images == 3


def test_two_folders_of_one_name_stay_apart(tmp_path: Path, write_image, make_head) -> None:
    for site in ("north", "south"):
        write_image(tmp_path / site / "scans" / "a.nii.gz", make_head())
    index = index_sources([str(tmp_path / "north/scans"), str(tmp_path / "south/scans")])
    assert list(index.collection.datasets) == ["scans", "scans_2"]


def test_a_renamed_dataset_takes_no_name_of_another(tmp_path: Path, write_image, make_head) -> None:
    folders = [tmp_path / name for name in ("a/x", "b/x", "c/x_2", "d/x")]
    for folder in folders:
        write_image(folder / "a.nii.gz", make_head())
    for order in ([0, 1, 2, 3], [2, 0, 1, 3]):
        index = index_sources([str(folders[k]) for k in order])
        assert set(index.collection.datasets) == {"x", "x_2", "x_3", "x_4"}
        assert [Path(record.path).parent for record in index.collection.records() if record.dataset == "x_2"] == [
            folders[2]
        ]


def write_plain(folder: Path, write_image, make_head, names) -> Path:
    for name in names:
        write_image(folder / f"{name}.nii.gz", make_head())
    return folder


def test_subjects_that_look_like_fewer_people_are_noted(tmp_path: Path, write_image, make_head) -> None:
    names = [f"P0{p}_{when}_T{k}" for p in (1, 2) for when in ("pre", "post") for k in (1, 2)]
    index = index_sources([str(write_plain(tmp_path / "d", write_image, make_head, names))])
    assert index.subjects() == 4
    assert "4 subjects in d look like 2" in index.notes[0]
    known = [f"00{site}_S_000{k}_T{n}" for site in (1, 2) for k in (1, 2, 3) for n in (1, 2)]
    assert index_sources([str(write_plain(tmp_path / "e", write_image, make_head, known))]).notes == []


def test_a_pattern_that_matches_some_paths_is_noted(tmp_path: Path, write_image, make_head) -> None:
    folder = write_plain(tmp_path / "d", write_image, make_head, ["P01_a", "P01_b", "p02_a", "p02_b"])
    index = index_sources([str(folder)], FindOptions(re.compile(r"(?P<subject>P\d+)_")))
    assert len(index.notes) == 1
    assert "2 of 4 paths" in index.notes[0]
    assert "p02_a" in index.notes[0]
    assert index_sources([str(folder)], FindOptions(re.compile(r"(?P<subject>[Pp]\d+)_"))).notes == []


def test_images_of_one_name_in_one_session_get_names_of_their_own(tmp_path: Path, write_image, make_head) -> None:
    for name in ("sub-1/anat/T1w.nii.gz", "sub-1/extra/T1w.nii.gz", "sub-1/extra/T1w.nii"):
        write_image(tmp_path / name, make_head())
    names = [record.name for record in index_sources([str(tmp_path)]).collection.records()]
    assert len(set(names)) == 3


def test_a_folder_that_links_to_itself_ends(scans: Path) -> None:
    (scans / "again").symlink_to(scans)
    assert index_sources([str(scans)]).images == 3


def test_missing_sources_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path / "none")):
        index_sources([str(tmp_path / "none")])
    with pytest.raises(UserError, match=r"\*\.nii\.gz"):
        index_sources([str(tmp_path / "*.nii.gz")])


def test_the_list_of_refused_files_comes_back(tmp_path: Path) -> None:
    excluded = [Exclusion("/a/ü\n.nii", "2D")]
    assert write_excluded(tmp_path / "cat.json", excluded) == tmp_path / "cat.excluded.json"
    assert read_excluded(tmp_path / "cat.json") == excluded
    assert read_excluded(tmp_path / "other.json") == []


@pytest.mark.slow
def test_workers_find_the_same_as_this_process(scans: Path) -> None:
    (scans / "bad.nii").write_text("no image")
    alone, together = (index_sources([str(scans)], workers=workers) for workers in (0, 2))
    assert together.entries == alone.entries
    assert (together.collection, together.excluded) == (alone.collection, alone.excluded)


def test_a_header_that_kills_its_reader_is_excluded(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash_on_one(work, jobs, workers):
        for job in jobs:
            yield job, object() if job[1].path.name == "FLAIR.nii.gz" else work(job)

    monkeypatch.setattr(indexing, "run_jobs", crash_on_one)
    index = index_sources([str(scans)])
    assert index.images == 2
    assert [exclusion.reason for exclusion in index.excluded] == ["the reader crashed on its header"]
