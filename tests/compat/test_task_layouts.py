"""Conversion of four layouts to tasks, by exact names, with messages for excluded cases."""

import json

import blosc2
import numpy as np
import pytest

from viewalign.compat.task_conversion import ConvertSettings
from viewalign.compat.task_layouts import convert
from viewalign.errors import UserError
from viewalign.tasks.manifest import read_manifest
from viewalign.tasks.spec import read_spec


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def converted(layout, source, out, **wanted):
    found = convert(layout, source, out, ConvertSettings(**wanted))
    spec = read_spec(out)
    return found, spec, {case.case: case for case in read_manifest(out, spec)}


def test_nnunet_folders_with_labels(tmp_path):
    source = tmp_path / "raw"
    for name in ("p1", "p2", "p3", "unlabelled"):
        for channel in range(2):
            touch(source / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
    touch(source / "masks" / "p1_0000_bet.nii.gz")
    (source / "dataset.json").write_text(json.dumps({"channel_names": {"0": "FA", "1": "MD"}}))
    (source / "labels.json").write_text(json.dumps({"p1": 0, "p2": 1, "p3": 1, "gone": 0}))
    found, spec, cases = converted("nnunet", source, tmp_path / "task")
    assert (spec.kind, spec.classes, [c.name for c in spec.channels]) == ("binary", ("0", "1"), ["FA", "MD"])
    assert [cases[name].target for name in ("p1", "p2", "p3")] == [0, 1, 1]
    assert cases["p1"].mask.name == "p1_0000_bet.nii.gz"
    assert cases["p2"].images["MD"].name == "p2_0001.nii.gz"
    assert len(found.left_out) == 2


@pytest.mark.parametrize(
    ("labels", "kind", "classes", "targets"),
    [
        ([1, 2, 1], "binary", ("1", "2"), [0, 1, 0]),
        ([-1, 1, 1], "binary", ("-1", "1"), [0, 1, 1]),
        ([True, False, True], "binary", ("0", "1"), [1, 0, 1]),
        ([0, 1.0, 0], "binary", ("0", "1"), [0, 1, 0]),
        ([3, 5, 7], "multiclass", ("3", "5", "7"), [0, 1, 2]),
        (["2", "10", "9"], "multiclass", ("2", "9", "10"), [0, 2, 1]),
    ],
)
def test_numbers_may_code_classes_in_any_way(tmp_path, labels, kind, classes, targets):
    source = tmp_path / "raw"
    for k in range(len(labels)):
        touch(source / "imagesTr" / f"p{k}_0000.nii.gz")
    (source / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1w"}}))
    (source / "labels.json").write_text(json.dumps({f"p{k}": label for k, label in enumerate(labels)}))
    _, spec, cases = converted("nnunet", source, tmp_path / "task")
    assert (spec.kind, spec.classes) == (kind, classes)
    assert [cases[f"p{k}"].target for k in range(len(labels))] == targets


def test_channels_may_be_fewer_than_those_of_the_dataset(tmp_path):
    for channel in range(2):
        touch(tmp_path / "raw" / "imagesTr" / f"p1_{channel:04d}.nii.gz")
        touch(tmp_path / "raw" / "imagesTr" / f"p2_{channel:04d}.nii.gz")
    (tmp_path / "raw" / "labels.json").write_text(json.dumps({"p1": 0, "p2": 1}))
    _, _, cases = converted("nnunet", tmp_path / "raw", tmp_path / "task", channels=["T1w"])
    assert {name: path.name for name, path in cases["p1"].images.items()} == {"T1w": "p1_0000.nii.gz"}


def test_participants_without_a_folder_and_folders_without_a_row_are_listed(tmp_path):
    source = tmp_path / "bids"
    for who in ("sub-01", "sub-10", "sub-11"):
        touch(source / who / "anat" / f"{who}_T1w.nii.gz")
    (source / "participants.tsv").write_text("participant_id\tage\n1\t30.5\n10\t31\n11\t32\n")
    found, _, cases = converted("bids", source, tmp_path / "task", target="age")
    assert set(cases) == {"sub-10", "sub-11"}
    assert [text.split()[0] for text in found.left_out] == ["sub-1", "sub-01"]


def test_nnunet_tables_name_subjects(tmp_path):
    source = tmp_path / "raw"
    for name in ("p1a", "p1b"):
        touch(source / "imagesTr" / f"{name}_0000.nii.gz")
    (source / "labels.csv").write_text("case,subject,target\np1a,p1,61.5\np1b,p1,63.25\n")
    _, spec, cases = converted("nnunet", source, tmp_path / "task")
    assert spec.kind == "regression"
    assert {case.subject for case in cases.values()} == {"p1"}
    assert cases["p1b"].target == 63.25


def test_the_layout_of_ssl3d_with_its_folds(tmp_path):
    source = tmp_path / "abide"
    source.mkdir()
    for name in "abcd":
        blosc2.asarray(np.zeros((1, 4, 4, 4), np.float32) + ord(name), urlpath=str(source / f"{name}_0000.b2nd"))
    (source / "labels.json").write_text(json.dumps({"a": 0, "b": 1, "c": 0, "d": None}))
    splits = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a"], "val": ["c", "b"]}]
    (source / "splits.json").write_text(json.dumps(splits))
    found, spec, cases = converted("ssl3d", source, tmp_path / "task")
    assert spec.kind == "binary"
    assert {name: case.fold for name, case in cases.items()} == {"a": 0, "b": 1, "c": 1}
    assert found.left_out == ["d has no label."]


def test_the_older_files_of_ssl3d(tmp_path):
    source = tmp_path / "old"
    source.mkdir()
    for name in "ab":
        touch(source / f"{name}_0000.b2nd")
    (source / "labelsTr.json").write_text(json.dumps({"a": ["x", 1], "b": ["y", 0]}))
    (source / "splits_final.json").write_text(
        json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": ["b"]}])
    )
    _, _, cases = converted("ssl3d", source, tmp_path / "task")
    assert [cases[name].target for name in "ab"] == [1, 0]
    assert {case.fold for case in cases.values()} == {None}


@pytest.mark.parametrize("inner", ["", "ses_1/"])
def test_fomo_folders(tmp_path, inner):
    source = tmp_path / "fomo"
    for n, words in (
        (1, ("flair", "dwi_b1000", "adc", "swi")),
        (2, ("flair", "dwi_b1000", "adc", "t2s")),
        (10, ("swi", "t2s")),
    ):
        for word in words:
            touch(source / "preprocessed" / f"sub_{n}" / "ses_1" / f"{word}.nii.gz")
        label = touch(source / "labels" / f"sub_{n}" / f"{inner}label.txt")
        label.write_text(f"{n % 2}\n")
    touch(source / "preprocessed" / "sub_2" / "ses_1" / "flair_old.nii.gz")
    touch(source / "preprocessed" / "sub_3" / "ses_1" / "flair.nii.gz")
    found, _, cases = converted("fomo", source, tmp_path / "task", task=1)
    assert sorted(cases) == ["sub_10_ses_1", "sub_1_ses_1", "sub_2_ses_1"]
    assert cases["sub_1_ses_1"].target == 1
    assert cases["sub_2_ses_1"].images["t2s"].name == "t2s.nii.gz"
    assert cases["sub_2_ses_1"].images["flair"].name == "flair.nii.gz"
    assert found.left_out == ["sub_3_ses_1 has no label.txt."]


def test_an_age_of_fomo_keeps_decimals(tmp_path):
    source = tmp_path / "fomo"
    touch(source / "preprocessed" / "sub_1" / "ses_1" / "t1.nii.gz")
    touch(source / "labels" / "sub_1" / "label.txt").write_text("72.9")
    _, _, cases = converted("fomo", source, tmp_path / "task", task=3)
    assert cases["sub_1_ses_1"].target == 72.9


def fomo26(root, images, label, subjects=("sub-01", "sub-02"), session="ses-01"):
    """Write empty images and labels in the layout of FOMO26: label of each session, images by name."""
    for number, subject in enumerate(subjects):
        for word in images:
            touch(root / "preprocessed" / subject / session / f"{word}.nii.gz")
        touch(root / "labels" / subject / session / label).write_text(f"{20 * number + number % 2}\n")
    return root


@pytest.mark.parametrize("where", ["", "Task_3", "Task_3/Task_3"])
def test_fomo26_brain_age_has_t1_alone(tmp_path, where):
    fomo26(tmp_path / "in" / where, ["t1w"], "labels.txt")
    found, spec, cases = converted("fomo", tmp_path / "in", tmp_path / "task", task=3)
    assert ([channel.name for channel in spec.channels], spec.unit) == (["t1"], "years")
    assert {name: case.target for name, case in cases.items()} == {"sub-01_ses-01": 0.0, "sub-02_ses-01": 21.0}
    assert cases["sub-01_ses-01"].images["t1w"].name == "t1w.nii.gz"
    assert not found.left_out


@pytest.mark.parametrize("separator", "-_")
def test_fomo26_polymicrogyria_has_subjects_with_either_separator(tmp_path, separator):
    subjects = [f"sub{separator}{k:02d}" for k in (1, 2)]
    source = tmp_path / "Task_5"
    for k, subject in enumerate(subjects):
        touch(source / "preprocessed" / subject / f"ses{separator}01" / "t1.nii.gz")
        touch(source / "labels" / subject / f"ses{separator}01" / "labels.txt").write_text(str(k))
    _, spec, cases = converted("fomo", source, tmp_path / "task", task=5)
    assert (spec.kind, spec.classes) == ("binary", ("negative", "positive"))
    assert [case.target for _, case in sorted(cases.items())] == [0, 1]


def test_fomo26_infarct_ignores_lesion_masks(tmp_path):
    source = tmp_path / "Task_1"
    for k, (subject, last) in enumerate((("sub-01", "swi"), ("sub-02", "t2s"))):
        for word in ("flair", "adc", "dwi_b1000", last):
            touch(source / "preprocessed" / subject / "ses-01" / f"{word}.nii.gz")
        touch(source / "labels" / subject / "ses-01" / "label.txt").write_text(str(k))
    touch(source / "labels" / "sub-02" / "ses-01" / "seg.nii.gz")
    _, spec, cases = converted("fomo", source, tmp_path / "task", task=1)
    assert [channel.name for channel in spec.channels] == ["dwi_b1000", "flair", "adc", "swi"]
    assert {case.target for case in cases.values()} == {0, 1}
    assert set(cases["sub-02_ses-01"].images) == {"flair", "adc", "dwi_b1000", "t2s"}


def test_bids_sessions_keep_their_subject(tmp_path):
    source = tmp_path / "bids"
    touch(source / "sub-1" / "ses-a" / "anat" / "sub-1_ses-a_T1w.nii.gz")
    touch(source / "sub-1" / "ses-b" / "anat" / "sub-1_ses-b_T1w.nii.gz")
    touch(source / "sub-2" / "anat" / "sub-2_T1w.nii.gz")
    touch(source / "sub-3" / "anat" / "sub-3_T2w.nii.gz")
    (source / "participants.tsv").write_text(
        "participant_id\tgroup\tsite\nsub-1\tAutism\tNYU\nsub-2\tControl\tKKI\nsub-3\tControl\tKKI\nsub-4\tn/a\tKKI\n"
    )
    found, spec, cases = converted("bids", source, tmp_path / "task", target="group")
    assert spec.classes == ("Autism", "Control")
    assert {name: (case.subject, case.site) for name, case in cases.items()} == {
        "sub-1_ses-a": ("sub-1", "NYU"),
        "sub-1_ses-b": ("sub-1", "NYU"),
        "sub-2": ("sub-2", "KKI"),
    }
    assert len(found.left_out) == 2
    with pytest.raises(UserError, match=r"'age'.*participant_id, group, site"):
        convert("bids", source, tmp_path / "other", ConvertSettings(target="age"))


def test_bids_sessions_have_targets_of_their_own(tmp_path):
    source = tmp_path / "bids"
    for session in ("1", "2", "3"):
        touch(source / "sub-1" / f"ses-{session}" / "anat" / f"sub-1_ses-{session}_T1w.nii.gz")
    touch(source / "sub-2" / "anat" / "sub-2_T1w.nii.gz")
    table = source / "participants.tsv"
    table.write_text(
        "participant_id\tsession_id\tage\nsub-1\tses-1\t20.5\n1\t2.0\t25\nsub-2\tses-1\t60\nsub-3\t\tNaN\n"
    )
    found, spec, cases = converted("bids", source, tmp_path / "task", target="age")
    assert spec.kind == "regression", "NaN is no class"
    assert {name: case.target for name, case in cases.items()} == {"sub-1_ses-1": 20.5, "sub-1_ses-2": 25, "sub-2": 60}
    assert len(found.left_out) == 2
    table.write_text("participant_id\tage\nsub-1\t20\nsub-1\t25\n")
    with pytest.raises(UserError, match=r"sub-1.*session_id"):
        convert("bids", source, tmp_path / "other", ConvertSettings(target="age"))
    table.write_bytes("participant_id\tage\tname\nsub-1\t20\tMüller\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"participants\.tsv.*UTF-8"):
        convert("bids", source, tmp_path / "other", ConvertSettings(target="age"))


def test_unknown_layouts_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="nnunet, ssl3d, fomo, bids"):
        convert("xnat", tmp_path, tmp_path / "out")
    for layout, words in (
        ("nnunet", "_0000.nii.gz"),
        ("ssl3d", "_0000.b2nd"),
        ("bids", "participants.tsv"),
        ("fomo", "task=1"),
    ):
        with pytest.raises(UserError, match=words):
            convert(layout, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
