from __future__ import annotations

from pathlib import Path

import pytest

from viewalign.data.indexing import index_sources
from viewalign.data.sources.table import participants
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


def test_a_path_with_an_unknown_ending_is_excluded_and_the_others_stay(folder: Path) -> None:
    (folder / "data" / "c.xyz").write_bytes(b"1")
    index, found = records(folder, "path\ndata/a.nii.gz\ndata/c.xyz\ndata/none\n")
    assert [record.image_id.split("__")[-1] for record in found] == ["a"]
    assert [Path(each.file).name for each in index.excluded] == ["c.xyz", "none"]


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


def test_numbers_of_subjects_with_and_without_decimals_are_the_same(folder: Path) -> None:
    _, (first, second) = records(folder, "path,subject,session\ndata/a.nii.gz,1,2\ndata/b.nii.gz,1.0,2.5\n")
    assert (first.subject, first.session, second.subject, second.session) == ("1", "2", "1", "2.5")


def test_semicolons_tabs_aliases_and_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANS", str(folder / "data"))
    index, (first,) = records(folder, "Image_Path;Subject ID\n$SCANS/a.nii.gz;Anna\n")
    assert first.subject == "Anna"
    image = index.collection.datasets["list"].subjects["Anna"].sessions["ses-DEFAULT"].images[0]
    assert image.image_path == "$SCANS/a.nii.gz"
    _, (only,) = records(folder, "path\tsubject\ndata/b.nii.gz\tBert\n", "list.tsv")
    assert only.subject == "Bert"


@pytest.mark.parametrize("column", ["patient", "PatientID", "patient_id", "participant", "Subject-ID", "PID"])
def test_a_column_of_people_names_the_subjects(folder: Path, column: str) -> None:
    index, found = records(folder, f"path,{column}\ndata/a.nii.gz,Anna\ndata/b.nii.gz,Anna\n")
    assert [record.subject for record in found] == ["Anna", "Anna"]
    assert index.notes == []


def test_a_column_subject_has_priority_over_one_of_patients(folder: Path) -> None:
    index, (first,) = records(folder, "path,PatientID,subject\ndata/a.nii.gz,7,Anna\n")
    assert first.subject == "Anna"
    image = index.collection.datasets["list"].subjects["Anna"].sessions["ses-DEFAULT"].images[0]
    assert (image.image_info or {})["PatientID"] == "7"


def test_images_that_became_separate_subjects_are_reported(folder: Path) -> None:
    index, _ = records(folder, "path,mrn\ndata/a.nii.gz,1\ndata/b.nii.gz,1\n")
    assert len(index.notes) == 1
    assert "`subject`" in index.notes[0]
    index, _ = records(folder, "path,subject\ndata/a.nii.gz,1\ndata/b.nii.gz,2\n")
    assert index.notes == []


def test_subjects_that_look_like_fewer_people_are_reported(folder: Path) -> None:
    rows = [f"P0{p}_{when}_T{k}.nii.gz" for p in (1, 2) for when in ("pre", "post") for k in (1, 2)]
    index, _ = records(folder, "\n".join(["path", *rows]))
    assert index.notes
    assert "4 subjects look like 2" in index.notes[0]
    assert "P01_post and P01_pre" in index.notes[0]
    assert records(folder, "\n".join(["path", *(f"sub-{row}" for row in rows)]))[0].notes == []


def test_rows_without_a_subject_are_reported(folder: Path) -> None:
    index, found = records(folder, "path,subject\ndata/a.nii.gz,Anna\n\ndata/b.nii.gz,n/a\ndata/mask.nii.gz,\n")
    assert [record.subject for record in found] == ["Anna", "b", "mask"]
    assert len(index.notes) == 1
    assert "no subject in 2 rows, the first in line 4" in index.notes[0]


def test_paths_below_the_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    index, (only,) = records(folder / "data", "path,subject,anatomy_mask\n~/data/a.nii.gz,A,~/data/mask.nii.gz\n")
    assert index.excluded == []
    assert (only.path, only.anatomy_mask) == (folder / "data/a.nii.gz", folder / "data/mask.nii.gz")


def test_rows_without_values_are_passed_over_and_lines_counted_as_in_the_file(folder: Path) -> None:
    _, (only,) = records(folder, "path;subject;site\n\ndata/a.nii.gz;Anna;\n;;\n")
    assert only.subject == "Anna"
    with pytest.raises(UserError, match="line 5"):
        records(folder, "path,subject\n\n\ndata/a.nii.gz,Anna\n,Anna\n")


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


TEXT = "path,subject\ndata/a.nii.gz,Müller\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode("utf-16"),  # of spreadsheets: "Unicode text"
        TEXT.encode("utf-16-le"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.replace(",", "\t").encode(),
        ("sep=;\r\n" + TEXT.replace(",", ";")).encode(),
        TEXT.replace("\n", "\r\n").replace("Müller", '"Müller"').encode(),
    ],
)
def test_encodings_and_separators_of_spreadsheets(folder: Path, content: bytes) -> None:
    (folder / "list.csv").write_bytes(content)
    assert [record.subject for record in index_sources([str(folder / "list.csv")]).collection.records()] == ["Müller"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,path\na,b\n", "2 columns called 'path'"),
        ("path,image_path\na,b\n", "the columns 'path' and 'image_path' mean the same"),
        ("path\ndata/a.nii.gz\0\n", "line 2: the path contains a NUL"),
    ],
)
def test_contradictions_are_errors(folder: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        records(folder, text)


def test_a_file_of_two_subjects_is_reported(folder: Path) -> None:
    index, found = records(folder, "path,subject\ndata/a.nii.gz,1\ndata/a.nii.gz,2\ndata/b.nii.gz,2\ndata/b.nii.gz,2\n")
    assert [record.subject for record in found] == ["1", "2"]
    assert index.notes == [
        "list.csv names 1 file again with another subject or session, such as a.nii.gz; the first row of a file counts"
    ]


TABLE = "participant_id\tage\nsub-01\t3\nsub-02\t4\n"


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode("utf-8-sig"),
        TABLE.encode("utf-16"),
        TABLE.encode("utf-16-le"),
        TABLE.replace("\n", "\r\n").encode(),
        TABLE.replace("sub-", "").encode(),
        TABLE.replace("sub-01", '"sub-01"').replace("3", '"3"').encode(),
        TABLE.replace("participant_id", "Participant_ID").encode(),
    ],
)
def test_participants_as_other_programs_write_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "participants.tsv").write_bytes(content)
    notes: list[str] = []
    found = participants(tmp_path, notes)
    assert (found["sub-01"], found["sub-02"], notes) == ({"age": "3"}, {"age": "4"}, [])


def test_participants_that_contradict_each_other_or_have_no_names(tmp_path: Path) -> None:
    (tmp_path / "participants.tsv").write_text(TABLE + "sub-02\t4\nsub-01\t99\n")
    notes: list[str] = []
    assert participants(tmp_path, notes)["sub-01"] == {"age": "99"}
    assert "several rows for 1 participant, such as sub-01; the last row counts" in notes[0]
    (tmp_path / "participants.tsv").write_text(TABLE.replace("\t", ","))
    assert participants(tmp_path, notes) == {}
    assert "no column `participant_id`" in notes[1]
