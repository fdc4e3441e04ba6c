from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

import viewalign
from viewalign.data.audit import audit, findings_path, write_findings
from viewalign.data.exclusions import ExclusionList
from viewalign.data.indexing import index_sources
from viewalign.data.store import Store
from viewalign.errors import UserError


def test_each_kind_has_count_files_and_option(tmp_path: Path, write_image, make_head) -> None:
    names = ("a_T1.nii.gz", "b_T1.nii.gz", "thin_T1.nii.gz", "c.nii.gz", "c_seg.nii.gz", "d.nii")
    for seed, name in zip((0, 0, 1, 2, 3, 4), names, strict=True):
        shape = (10, 28, 20) if name.startswith("thin") else (24, 28, 20)
        write_image(tmp_path / name, make_head(seed, shape))
    nibabel.save(nibabel.Nifti1Image(make_head(5).reshape(2, 12, 28, 20).T, np.eye(4)), tmp_path / "e.nii")
    found = {row.kind: row for row in audit(index_sources([str(tmp_path)]))}
    files = {kind: [Path(file).name for file in row.files] for kind, row in found.items()}
    assert files == {
        "copies": ["a_T1.nii.gz", "b_T1.nii.gz"],
        "few_slices": ["thin_T1.nii.gz"],
        "unknown_modality": ["c.nii.gz", "d.nii"],
        "excluded": ["e.nii"],
        "label_maps": ["c_seg.nii.gz"],
    }
    assert found["excluded"].option == "frames=true includes them"
    assert found["label_maps"].option == "labels=true includes them"
    assert "exclude=FILE" in found["few_slices"].option


def test_the_list_of_findings_can_be_edited_and_given_back(tmp_path: Path, write_image, make_head) -> None:
    for seed, name in zip((0, 0, 1, 2), ("a/x.nii.gz", "b/x.nii.gz", "b/thin.nii.gz", "c.nii.gz"), strict=True):
        write_image(tmp_path / "scans" / name, make_head(seed, (10, 28, 20) if "thin" in name else (24, 28, 20)))
    index = index_sources([str(tmp_path / "scans")])
    listed = findings_path(tmp_path / "cat.json")
    write_findings(index, listed)
    lines = listed.read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines] == [
        ["file", "kind"],
        [str(tmp_path / "scans/b/x.nii.gz"), "copies"],
        [str(tmp_path / "scans/b/thin.nii.gz"), "few_slices"],
    ]
    again = index_sources([str(tmp_path / "scans")], exclude=ExclusionList.read([listed]))
    assert [Path(entry.file).name for entry in again.entries] == ["x.nii.gz", "c.nii.gz"]
    assert [exclusion.reason for exclusion in again.excluded] == [
        "it is listed in cat.audit.tsv: few slices: 10 along an axis",
        f"it is listed in cat.audit.tsv: same content as {tmp_path / 'scans/a/x.nii.gz'}",
    ]


def test_an_edited_list_is_not_replaced_by_the_command_that_reads_it(tmp_path: Path, write_image, make_head) -> None:
    for seed, name in enumerate(("thin", "flat", "whole")):
        write_image(tmp_path / "scans" / f"{name}.nii.gz", make_head(seed, (24 if name == "whole" else 10, 28, 20)))
    viewalign.index(tmp_path / "scans", tmp_path / "cat.json", workers=0)
    listed = findings_path(tmp_path / "cat.json")
    edited = "".join(line for line in listed.read_text().splitlines(keepends=True) if "flat" not in line)
    listed.write_text(edited)
    for _ in range(2):
        found = viewalign.index(tmp_path / "scans", tmp_path / "cat.json", workers=0, exclude=[str(listed)])
        assert [Path(entry.file).name for entry in found.entries] == ["flat.nii.gz", "whole.nii.gz"]
        assert listed.read_text() == edited
    with pytest.raises(UserError, match="prepare writes this list anew"):
        viewalign.prepare(tmp_path / "cat.json", tmp_path / "store", exclude=[str(tmp_path / "store" / "audit.tsv")])


@pytest.mark.parametrize(
    ("name", "text", "left_out"),
    [
        ("a.txt", "# broken\nb/x.nii.gz\n\n", ["b/x.nii.gz"]),
        ("a.csv", "file,who\nx.nii.gz,me\n", ["a/x.nii.gz", "b/x.nii.gz"]),
        ("a.json", '[{"file": "/data/a/x.nii.gz", "reason": "motion"}]', ["a/x.nii.gz"]),
        ("a.tsv", "file\nv__d__s__ses__x\nz.nii.gz\n", ["a/x.nii.gz"]),
        ("a.txt", "", []),
    ],
)
def test_lists_name_files_by_path_end_of_path_or_id(tmp_path: Path, name: str, text: str, left_out: list[str]) -> None:
    (tmp_path / name).write_text(text)
    exclude = ExclusionList.read([tmp_path / name])
    images = {"a/x.nii.gz": "v__d__s__ses__x", "b/x.nii.gz": "v__d__s__ses__y", "b/xx.nii.gz": ""}
    reasons = {file: exclude.reason(Path("/data") / file, image) for file, image in images.items()}
    assert [file for file, reason in reasons.items() if reason] == left_out
    assert all(name in reason for reason in reasons.values() if reason)


@pytest.mark.parametrize(("name", "text"), [("a.csv", "path\nx\n"), ("a.json", "{"), ("a.json", "[1]")])
def test_what_is_no_list_is_rejected(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"is no exclusion list. It needs a column `file`"):
        ExclusionList.read([tmp_path / name])
    with pytest.raises(UserError, match="cannot be read: No such file"):
        ExclusionList.read([tmp_path / "none.csv"])


def test_prepare_leaves_out_what_a_list_names_by_file_or_id(tmp_path: Path, write_image, make_head) -> None:
    for seed in range(3):
        write_image(tmp_path / f"scans/{seed}.nii.gz", make_head(seed))
    (tmp_path / "list.txt").write_text("0.nii.gz\nviewalign__scans__1__ses-DEFAULT__1\n")
    done = viewalign.prepare(tmp_path / "scans", tmp_path / "store", workers=0, exclude=[str(tmp_path / "list.txt")])
    assert done.prepared == 1
    assert [(Path(each.file).name, each.reason) for each in done.excluded] == [
        ("0.nii.gz", "it is listed in list.txt"),
        ("1.nii.gz", "it is listed in list.txt"),
    ]
    page = (tmp_path / "store/report.html").read_text()
    assert "viewalign · store" in page


def test_prepare_takes_images_that_a_list_names_out_of_a_store_and_back(tmp_path: Path, write_image, make_head) -> None:
    for seed in range(3):
        write_image(tmp_path / f"scans/{seed}.nii.gz", make_head(seed))
    (tmp_path / "list.txt").write_text("0.nii.gz\n")
    places = tmp_path / "scans", tmp_path / "store"
    viewalign.prepare(*places, workers=0)
    done = viewalign.prepare(*places, workers=0, exclude=[str(tmp_path / "list.txt")])
    assert (done.prepared, done.others, len(done.excluded)) == (2, 0, 1)
    assert [name[-1] for name in Store.open(places[1]).ids] == ["1", "2"]
    back = viewalign.prepare(*places, workers=0)
    assert (back.prepared, back.made, back.skipped) == (3, 0, 3)
    for number in (2, 1):
        done = viewalign.prepare(*places, workers=0, shard=f"{number}/2", exclude=[str(tmp_path / "list.txt")])
    assert (done.prepared, done.others) == (2, 0)
    assert [name[-1] for name in Store.open(places[1]).ids] == ["1", "2"]


@pytest.mark.parametrize("content", ['"scans/a.nii.gz"\r\n', "scans/a.nii.gz\n"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_lists_of_other_editors(tmp_path: Path, content: str, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes(content.encode(encoding))
    assert ExclusionList.read([tmp_path / "list.txt"]).reason(Path("/x/scans/a.nii.gz")) == "it is listed in list.txt"


def test_entries_that_match_no_image_are_reported(tmp_path: Path, write_image, make_head, caplog) -> None:
    """An image that somebody meant to leave out would be used without a word."""
    for name in "ab":
        write_image(tmp_path / "scans" / f"{name}.nii.gz", make_head(ord(name)))
    (tmp_path / "list.txt").write_text("scans/a.nii.gz\nscans\\b.nii.gz\nscans/*.nii.gz\n")
    index = index_sources([str(tmp_path / "scans")], exclude=ExclusionList.read([tmp_path / "list.txt"]))
    assert index.images == 1
    assert "Entries of the exclusion lists that match no image: 2 of 3, such as scans\\b.nii.gz" in index.notes[-1]
    viewalign.prepare(tmp_path / "scans", tmp_path / "store", workers=0, exclude=[str(tmp_path / "list.txt")])
    assert "match no image: 2 of 3" in caplog.text
