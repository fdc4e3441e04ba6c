from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.data.catalogue import read_catalogue
from viewalign.data.indexing import index_sources
from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError


def run(*arguments: object):
    return CliRunner().invoke(app, ["index", *(str(argument) for argument in arguments)])


def save(path: Path, shape=(8, 9, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).normal(5, 1, shape).astype(np.float32)), str(path))


def test_a_table_and_a_catalogue(tmp_path: Path) -> None:
    for name in ("sub-01/ses-1/T1w.nii.gz", "sub-01/ses-2/T1w.nii.gz", "sub-02/ses-1/T2w.mha"):
        save(tmp_path / "scans" / name)
    result = run(tmp_path / "scans", "-o", tmp_path / "cat.json")
    assert result.exit_code == 0
    for words in ("Subjects", "2", "Sessions", "3", "T1w 2, T2w 1", "8×9×10", "1×1×1 mm", "viewalign prepare"):
        assert words in result.stdout
    assert len(list(read_catalogue(tmp_path / "cat.json").records())) == 3
    assert json.loads((tmp_path / "cat.excluded.json").read_text()) == []


def test_excluded_files_are_listed(tmp_path: Path) -> None:
    save(tmp_path / "scans" / "a.nii.gz")
    save(tmp_path / "scans" / "flat.nii.gz", (9, 10))
    result = run(tmp_path / "scans", "-o", tmp_path / "cat.json")
    assert result.exit_code == 3
    (entry,) = json.loads((tmp_path / "cat.excluded.json").read_text())
    assert entry["file"].endswith("flat.nii.gz")
    assert "2D" in entry["reason"]
    assert "flat.nii.gz: it is no volume but 2D" in result.stdout


def test_no_volumes_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    result = run(tmp_path, "-o", tmp_path / "cat.json")
    assert result.exit_code == 1
    assert isinstance(result.exception, UserError)
    assert "No volumes were found" in str(result.exception)
    assert not (tmp_path / "cat.json").exists()


@pytest.mark.parametrize(
    ("source", "out", "sentence"),
    [
        ("store", "cat.json", "is a store, whose images are prepared"),
        ("raw/dataset.json", "cat.json", "is not a catalogue"),
        ("scans", "scans", "it is a folder"),
    ],
)
def test_other_files_than_images_are_recognised(tmp_path: Path, source: str, out: str, sentence: str) -> None:
    save(tmp_path / "scans" / "a.nii.gz")
    for name in ("store/store.json", "raw/dataset.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"labels": {}}')
    assert sentence in str(run(tmp_path / source, "-o", tmp_path / out).exception)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["raw", "scans", "store"]


@pytest.mark.parametrize("name", ["d.audit.tsv", "d.excluded.json", "d.index.json", "d.html"])
def test_foreign_files_beside_the_catalogue_stay_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    save(tmp_path / "scans" / "a.nii.gz")
    (tmp_path / name).write_text("mine")
    assert name in str(run(tmp_path / "scans", "-o", tmp_path / "d.json").exception)
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([name, "scans"])


def test_many_stray_files_are_one_note(tmp_path: Path) -> None:
    save(tmp_path / "fomo" / "sub_1" / "ses_1" / "t1.nii.gz")
    for number in range(5):
        save(tmp_path / "fomo" / f"stray{number}.nii.gz")
    index = index_sources([str(tmp_path / "fomo")])
    assert index.images == 1
    assert len(index.notes) == 1
    assert "5" in index.notes[0]


def test_a_pattern_that_matches_no_path_is_reported(tmp_path: Path) -> None:
    save(tmp_path / "scans" / "anna.nii.gz")
    result = run(tmp_path / "scans", "-o", tmp_path / "cat.json", r"subject_pattern=(?P<subject>P\d+)")
    assert "subject_pattern matches no path (1 tried), such as anna.nii.gz" in " ".join(result.stdout.split())


def test_dicom_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").write_bytes(b"DICM")
    assert "DICOM" in str(run(tmp_path, "-o", tmp_path / "cat.json").exception)


@pytest.mark.parametrize(
    ("pattern", "words"), [("(", "not a regular expression"), ("x(?P<who>.)", "no group named subject")]
)
def test_a_wrong_pattern_is_explained(tmp_path: Path, pattern: str, words: str) -> None:
    save(tmp_path / "a.nii.gz")
    result = run(tmp_path, "-o", tmp_path / "cat.json", f"subject_pattern={pattern}")
    assert words in str(result.exception)


def test_a_subject_pattern_may_begin_as_a_list_does(tmp_path: Path) -> None:
    for name in ("ab12_x.nii", "cd12_y.nii"):
        save(tmp_path / "scans" / name)
    result = run(tmp_path / "scans", "-o", tmp_path / "cat.json", r"subject_pattern=[a-z]+(?P<subject>\d+)")
    assert result.exit_code == 0
    assert {record.subject for record in read_catalogue(tmp_path / "cat.json").records()} == {"12"}


def test_the_subject_pattern_is_used(tmp_path: Path) -> None:
    for name in ("x_P1_a.nii.gz", "y_P1_b.nii.gz"):
        save(tmp_path / "scans" / name)
    run(tmp_path / "scans", "-o", tmp_path / "cat.json", r"subject_pattern=_(?P<subject>P\d)_")
    assert {record.subject for record in read_catalogue(tmp_path / "cat.json").records()} == {"P1"}
