"""Datasets: found by number, name and folder, and errors before training."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import dataset as datasets

from .conftest import write, write_dataset


@pytest.fixture
def raw(tmp_path):
    write_dataset(tmp_path / "raw" / "Dataset042_Balls", cases=3, size=(12, 12, 12))
    return tmp_path / "raw"


def change(root, **keys):
    tree = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(tree | keys))


@pytest.mark.parametrize("asked", ["42", "Dataset042_Balls", "folder"])
def test_found(asked, raw):
    root = raw / "Dataset042_Balls"
    found = datasets.find(str(root) if asked == "folder" else asked, raw)
    assert (found.name, found.id, found.channels, found.ending) == ("Dataset042_Balls", 42, 1, ".nii.gz")
    assert found.labels == {"rind": (1,), "core": (2,)}
    assert [case.name for case in found.cases] == ["case_00", "case_01", "case_02"]
    seen = []
    datasets.check(found, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_folder_without_a_number_gets_one_and_keeps_it(tmp_path):
    write_dataset(tmp_path / "my balls", cases=2, size=(8, 8, 8))
    raw = tmp_path / "raw"
    raw.mkdir()
    found = datasets.find(str(tmp_path / "my balls"), raw)
    assert found.name == "Dataset900_MyBalls"
    datasets.link(found, raw)
    assert (raw / found.name / "dataset.json").is_file()
    datasets.link(found, raw)
    assert datasets.find(str(tmp_path / "my balls"), raw).name == found.name
    write_dataset(tmp_path / "others", cases=2, size=(8, 8, 8))
    assert datasets.find(str(tmp_path / "others"), raw).id == 901
    stranger = datasets.Dataset(tmp_path / "others", found.name, {}, ())
    with pytest.raises(UserError, match=found.name):
        datasets.link(stranger, raw)


def test_a_number_of_another_dataset_is_not_used(tmp_path):
    """nnU-Net finds datasets by number in three folders, and fails if two names have it."""
    raw, *others = (tmp_path / name for name in ("raw", "preprocessed", "results"))
    raw.mkdir()
    own = write_dataset(tmp_path / "Dataset901_Own", cases=1, size=(8, 8, 8))
    write_dataset(tmp_path / "balls", cases=1, size=(8, 8, 8))
    for folder in (raw, *others):
        theirs = folder / "Dataset901_Theirs"
        theirs.mkdir(parents=True)
        found = datasets.find(str(own), raw, *others)
        with pytest.raises(UserError, match=re.escape(f"{own} and {theirs} have the same number 901")):
            datasets.link(found, raw, *others)
        assert not (raw / own.name).is_symlink()
        theirs.rmdir()
    for folder, number in zip((raw, *others), (900, 901, 902), strict=True):
        (folder / f"Dataset{number}_Theirs").mkdir()
    assert datasets.find(str(tmp_path / "balls"), raw, *others).name == "Dataset903_Balls"
    (others[0] / "Dataset901_Theirs").rmdir()
    datasets.link(datasets.find(str(own), raw, *others), raw, *others)
    assert (raw / own.name / "dataset.json").is_file()
    (others[1] / "Dataset901_Theirs").mkdir()
    with pytest.raises(UserError, match=re.escape(f"remove the link {raw / own.name}")):
        datasets.check_number(datasets.find(str(own), raw, *others), raw, *others)


def test_regions_and_an_ignore_label(raw):
    change(raw / "Dataset042_Balls", labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    found = datasets.find("42", raw)
    assert found.labels == {"whole": (1, 2), "core": (2,)}
    assert found.ignore == 3
    datasets.check(found)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: (root / "dataset.json").unlink(), r"Dataset042_Balls|dataset\.json"),
        (lambda root: (root / "dataset.json").write_text("{"), "JSON"),
        (lambda root: (root / "dataset.json").write_text('{"labels": {}}'), "file_ending.*channel_names"),
        (lambda root: change(root, labels={"background": 0}), "background"),
        (lambda root: change(root, labels={"0": "background", "1": "tumour"}), '"labels"'),
        (lambda root: change(root, labels=["background", "tumour"]), '"labels"'),
        (lambda root: change(root, file_ending=".mha"), r"_0000\.mha"),
        (lambda root: change(root, channel_names={"0": "a", "1": "b"}), r"case_00_0001\.nii\.gz"),
        (lambda root: (root / "labelsTr" / "case_01.nii.gz").unlink(), r"labelsTr/case_01\.nii\.gz"),
        (lambda root: [path.unlink() for path in (root / "labelsTr").iterdir()], "labels"),
    ],
)
def test_an_incomplete_dataset(damage, sentence, raw):
    root = raw / "Dataset042_Balls"
    damage(root)
    with pytest.raises(UserError, match=sentence):
        datasets.find(str(root), raw)


def listed(root, monkeypatch):
    """Move the dataset's files elsewhere, and list two of its three cases in dataset.json."""
    away = root.parent.parent / "away"
    away.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (root / name).rename(away / name)
    monkeypatch.setenv("AWAY", str(away))
    cases = {
        "case_00": {
            "images": ["$AWAY/imagesTr/case_00_0000.nii.gz"],
            "label": str(away / "labelsTr" / "case_00.nii.gz"),
        },
        "second": {
            "images": ["../../away/imagesTr/case_02_0000.nii.gz"],
            "label": "../../away/labelsTr/case_02.nii.gz",
        },
    }
    change(root, dataset=cases)
    return cases


def test_cases_that_the_description_lists(raw, monkeypatch):
    root = raw / "Dataset042_Balls"
    listed(root, monkeypatch)
    found = datasets.find("42", raw)
    datasets.check(found)
    expected = get_filenames_of_train_images_and_targets(str(root))
    seen = {
        case.name: ([str(path.resolve()) for path in case.images], str(case.labels.resolve())) for case in found.cases
    }
    assert seen == {name: (files["images"], files["label"]) for name, files in expected.items()}
    assert found.images.resolve() == raw.parent / "away" / "imagesTr"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda cases: cases["second"].pop("label"), '"dataset"'),
        (lambda cases: cases["second"].update(images=[]), "second has 0 images"),
        (lambda cases: cases["second"].update(label="gone.nii.gz"), r"gone\.nii\.gz"),
        (lambda cases: cases["second"].update(images=[3]), '"dataset"'),
        (lambda cases: cases.clear(), '"dataset"'),
    ],
)
def test_a_damaged_list_of_cases(damage, sentence, raw, monkeypatch):
    cases = listed(raw / "Dataset042_Balls", monkeypatch)
    damage(cases)
    change(raw / "Dataset042_Balls", dataset=cases)
    with pytest.raises(UserError, match=sentence):
        datasets.find("42", raw)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda labels: write(labels, np.full((12, 12, 12), 7, np.uint8)),
            r"case_01\.nii\.gz.*: 7",
        ),
        (
            lambda labels: write(labels, np.zeros((12, 10, 12), np.uint8)),
            r"case_01_0000\.nii\.gz.*12×12×12.*12×10×12",
        ),
        (lambda labels: write(labels, np.zeros((12, 12, 12), np.uint8), (2.0, 1.0, 1.0)), "voxel size"),
        (lambda labels: labels.write_bytes(b"nothing"), "case_01"),
    ],
)
def test_labels_that_do_not_fit(damage, sentence, raw):
    found = datasets.find("42", raw)
    damage(found.cases[1].labels)
    with pytest.raises(UserError, match=sentence):
        datasets.check(found)


@pytest.mark.parametrize("name", ["case_01_0001.nii.gz", "mean.nii.gz"])
def test_images_that_nnunet_would_take_for_others(raw, name):
    (raw / "Dataset042_Balls" / "imagesTr" / name).touch()
    with pytest.raises(UserError, match=re.escape(name)):
        datasets.check(datasets.find("42", raw))


def test_nothing_and_two_of_a_number(raw):
    with pytest.raises(UserError, match="dataset 43"):
        datasets.find("43", raw)
    (raw / "Dataset042_Other").mkdir()
    with pytest.raises(UserError, match="ambiguous"):
        datasets.find("42", raw)


def test_patterns(tmp_path):
    cases = ["liver_1", "liver_2", "liver_20"]
    assert datasets.names_matching(cases, "liver_2*, liver_1") == cases
    (tmp_path / "held.txt").write_text("liver_1\nliver_20\n")
    assert datasets.names_matching(cases, str(tmp_path / "held.txt")) == ["liver_1", "liver_20"]
    (tmp_path / "spaces.txt").write_text("patient 01\nliver_1 liver_20\n")
    assert datasets.names_matching([*cases, "patient 01"], str(tmp_path / "spaces.txt")) == [
        "liver_1",
        "liver_20",
        "patient 01",
    ]
    with pytest.raises(UserError, match="spleen_"):
        datasets.names_matching(cases, "spleen_*")
    for encoding in ("utf-8-sig", "utf-16"):  # as editors of Windows write text
        (tmp_path / "held.txt").write_text("liver_1\nliver_20\n", encoding=encoding)
        assert datasets.names_matching(cases, str(tmp_path / "held.txt")) == ["liver_1", "liver_20"]
    (tmp_path / "held.txt").write_bytes(b"liver_1\xff\xfa\n")
    with pytest.raises(UserError, match=r"held\.txt cannot be read"):
        datasets.names_matching(cases, str(tmp_path / "held.txt"))


def test_a_list_of_names_may_be_longer_than_a_file_name():
    cases = [f"liver_{number:03d}" for number in range(40)]
    assert datasets.names_matching(cases, ",".join(cases)) == cases


def rewritten(path, change_affine, turn=None):
    image = nib.load(path)
    voxels = np.asanyarray(image.dataobj)
    affine = change_affine(image.affine.copy())
    image = nib.Nifti1Image(voxels, affine)
    if turn:
        image = image.as_reoriented(nib.orientations.axcodes2ornt(turn))
    nib.save(image, path)


def sheared(affine):
    affine[0, 1] += 0.3
    return affine


def test_images_that_only_the_named_reader_accepts(raw):
    root = raw / "Dataset042_Balls"
    for path in (root / "imagesTr/case_00_0000.nii.gz", root / "labelsTr/case_00.nii.gz"):
        rewritten(path, sheared)
    with pytest.raises(UserError, match="case_00 cannot be read"):
        datasets.check(datasets.find("42", raw))
    change(root, overwrite_image_reader_writer="NibabelIO")
    datasets.check(datasets.find("42", raw))
    change(root, overwrite_image_reader_writer="NibabelIOWithReorient")
    datasets.check(datasets.find("42", raw))


def test_a_reader_that_reorients_compares_the_turned_grids(raw, caplog):
    write_dataset(raw / "Dataset043_Long", cases=2, size=(12, 10, 8))
    root = raw / "Dataset043_Long"
    rewritten(root / "labelsTr/case_00.nii.gz", lambda affine: affine, "SPL")
    with pytest.raises(UserError, match="different sizes"):
        datasets.check(datasets.find("43", raw))
    change(root, overwrite_image_reader_writer="NibabelIOWithReorient")
    datasets.check(datasets.find("43", raw))
    assert "position" not in caplog.text


@pytest.mark.parametrize("reader", ["", "NibabelIO", "NibabelIOWithReorient"])
def test_labels_beside_their_image_are_reported(raw, caplog, reader):
    root = raw / "Dataset042_Balls"
    change(root, overwrite_image_reader_writer=reader)

    def moved(affine):
        affine[1, 3] += 0.6
        return affine

    rewritten(root / "labelsTr/case_01.nii.gz", moved)
    datasets.check(datasets.find("42", raw))
    assert "Labels with another position than their image, which nnU-Net ignores, in 1 case: " in caplog.text
    assert "case_01 (0.6 mm)" in caplog.text


@pytest.mark.parametrize("requested", ["4", "Dataset004_Livre"])
def test_a_dataset_in_the_current_folder_is_suggested(tmp_path, monkeypatch, requested):
    monkeypatch.chdir(tmp_path)
    for name in ("Dataset004_Liver", "Dataset040_Other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").touch()
    with pytest.raises(UserError, match="mean 'Dataset004_Liver'"):
        datasets.find(requested, tmp_path / "raw")
