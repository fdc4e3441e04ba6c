"""Folders named like public datasets: each file is an image of its person, or left out for a true reason."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from public_layouts import LAYOUTS, expectations, write_layout

from viewalign.data.file_types import suffix_of
from viewalign.data.indexing import Index, index_sources


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_of_public_datasets(tmp_path: Path, name: str) -> None:
    root = tmp_path / "dataset"
    write_layout(root, name)
    index = index_sources([str(root)], workers=0)
    expected = expectations(name)
    found = {path: _found(index, root, path, value) for path, value in expected.items()}
    assert found == expected
    assert index.images == sum(len(value.split()) == 3 and "excluded" not in value for value in expected.values())


def _found(index: Index, root: Path, path: str, expected: str) -> str:
    """Return what became of a file, in the words of the table."""
    name = path.removesuffix(" 4D")
    name = name if ".dcm " not in name else name.rpartition(" ")[0]
    file = root / name
    files = sorted(file.parent.glob(file.name)) if "*" in name else [file]
    records = [record for record in index.collection.records() if record.path in files]
    if records:
        return _words(records[0], files[0], expected)
    if any(str(each) in index.label_files for each in files):
        return "label"
    reasons = [each.reason for each in index.excluded if each.file == str(file)]
    if reasons:
        return expected if all(word in reasons[0] for word in expected.split()[1:]) else reasons[0]
    if expected == "dicom":
        return "dicom" if index.other_files["DICOM without images"] else "lost"
    if expected == "counted":
        return "counted" if index.other_files[file.suffix] else "lost"
    if index.other_files["".join(file.suffixes[-1:])]:
        return file.suffix
    return "outside"


def _words(record, file: Path, expected: str) -> str:
    subject, session, modality = record.subject, record.session.replace("ses-DEFAULT", "-"), record.modality
    wanted = expected.split()[0]
    if wanted.startswith("@"):
        assert subject == f"patient-{hashlib.sha256(wanted[1:].encode()).hexdigest()[:8]}"
        return f"{wanted} dicom {modality}"
    if wanted == "own":
        assert subject.endswith(file.name[: -len(suffix_of(file.name) or "")])
        subject = "own"
    return f"{subject} {session} {modality}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AMOS", ["imagesVa", "index it itself"]),
        ("EMPIRE10", []),
        ("ABCD", ["derivatives/"]),
    ],
)
def test_what_a_layout_ignores_is_noted(tmp_path: Path, name: str, words: list[str]) -> None:
    write_layout(tmp_path / "dataset", name)
    notes = index_sources([str(tmp_path / "dataset")], workers=0).notes
    assert all(any(word in note for note in notes) for word in words)
