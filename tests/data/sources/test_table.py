from __future__ import annotations

from pathlib import Path

import pytest

from viewalign.data.indexing import index_sources
from viewalign.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, write_image, make_head) -> Path:
    for name in ("a.nii.gz", "b.nii.gz", "mask.nii.gz"):
        write_image(tmp_path / "data" / name, make_head())
    return tmp_path


def records(folder: Path, text: str, name: str = "list.csv"):
    (folder / name).write_text(text, encoding="utf-8-sig")
    index = index_sources([str(folder / name)])
    return index, list(index.collection.records())


def test_all_columns_are_taken(folder: Path) -> None:
    index, (first, second) = records(
        folder,
        "path,subject,session,modality,dataset,name,anonymization_mask,anatomy_mask,scanner\n"
        "data/a.nii.gz,Anna,v1,T1w,north,one,data/mask.nii.gz,,Aera\n"
        f"{folder}/data/b.nii.gz,Bert,,,,,,data/mask.nii.gz,n/a\n",
    )
    assert first.image_id == "viewalign__north__Anna__v1__one"
    assert (first.modality, first.path) == ("T1w", folder / "data/a.nii.gz")
    assert (first.anonymisation_mask, first.anatomy_mask) == (folder / "data/mask.nii.gz", None)
    assert second.image_id == "viewalign__list__Bert__ses-DEFAULT__b"
    assert (second.anonymisation_mask, second.anatomy_mask) == (None, folder / "data/mask.nii.gz")
    image = index.collection.datasets["north"].subjects["Anna"].sessions["v1"].images[0]
    assert image.image_info is not None
    assert image.image_info["scanner"] == "Aera"


def test_semicolons_tabs_aliases_and_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANS", str(folder / "data"))
    index, (first,) = records(folder, "Image_Path;Subject ID\n$SCANS/a.nii.gz;Anna\n")
    assert first.subject == "Anna"
    image = index.collection.datasets["list"].subjects["Anna"].sessions["ses-DEFAULT"].images[0]
    assert image.image_path == "$SCANS/a.nii.gz"
    _, (only,) = records(folder, "path\tsubject\ndata/b.nii.gz\tBert\n", "list.tsv")
    assert only.subject == "Bert"


def test_missing_files_are_excluded(folder: Path) -> None:
    index, found = records(folder, "path,anatomy_mask\ndata/none.nii.gz,\ndata/a.nii.gz,data/lost.nii.gz\n")
    assert found == []
    assert [exclusion.reason.split(f" {folder}")[0] for exclusion in index.excluded] == [
        "its anatomy mask",
        "the file does not exist",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("subject,modality\nAnna,T1w\n", "`path`"),
        ("path,subjct\ndata/a.nii.gz,Anna\n", "'subjct'.*'subject'"),
        ("path,subject\n,Anna\n", "line 2.*path"),
        ("path\ndata/a.nii.gz,Anna\n", "line 2.*columns"),
        ("path\n$NOWHERE_SET/a.nii.gz\n", "NOWHERE_SET"),
        ("", "`path`"),
    ],
)
def test_a_wrong_table_is_rejected(folder: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        records(folder, text)


def test_binary_is_no_table(folder: Path) -> None:
    (folder / "list.csv").write_bytes(b"path\n\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list\.csv.*UTF-8"):
        index_sources([str(folder / "list.csv")])
