"""Preprocessed cases: made once, and again if images, labels or classes have changed."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation import finetune, planning, plans

from .conftest import write_dataset

pytest.importorskip("nnunetv2")


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "Dataset007_Small", cases=3, size=(8, 8, 8))


@pytest.fixture
def prepare(root, tmp_path, monkeypatch):
    """Preprocess without nnU-Net's own work; returns the changed cases, and whether anything was preprocessed."""
    folder = tmp_path / "preprocessed" / root.name
    folder.mkdir(parents=True)
    plan = {"configurations": {plans.CONFIGURATION: {"data_identifier": "identifier"}}}
    done = []

    def preprocess(*_, **__):
        done.append(1)
        (folder / "identifier").mkdir()
        (folder / "gt_segmentations").mkdir(exist_ok=True)

    monkeypatch.setattr("nnunetv2.experiment_planning.plan_and_preprocess_api.preprocess_dataset", preprocess)

    def run():
        done.clear()
        changed = planning.preprocess(datasets.find(str(root), tmp_path), planning.Planned("plan", plan, folder), 1)
        return changed, bool(done)

    run.folder = folder
    return run


def test_cases_are_preprocessed_once(prepare):
    assert prepare() == ([], True)
    assert prepare() == ([], False)


def test_a_corrected_annotation_is_used_in_training_and_evaluation(root, prepare):
    prepare()
    corrected, copy = (folder / "case_01.nii.gz" for folder in (root / "labelsTr", prepare.folder / "gt_segmentations"))
    shutil.copyfile(root / "labelsTr" / "case_02.nii.gz", corrected)
    os.utime(corrected, (1, 1))  # older than the copy, as after an extraction from an archive
    assert prepare() == (["case_01"], True)
    assert copy.read_bytes() == corrected.read_bytes()
    assert prepare() == ([], False)


def test_a_file_that_was_only_copied_has_not_changed(root, prepare):
    prepare()
    os.utime(root / "imagesTr" / "case_01_0000.nii.gz", (1, 1))
    assert prepare() == ([], False)


def test_a_changed_image_and_a_new_class(root, prepare):
    prepare()
    shutil.copyfile(root / "imagesTr" / "case_02_0000.nii.gz", root / "imagesTr" / "case_00_0000.nii.gz")
    assert prepare() == (["case_00"], True)
    tree = json.loads((root / "dataset.json").read_text())
    tree["labels"]["cyst"] = 3
    (root / "dataset.json").write_text(json.dumps(tree))
    assert prepare() == (["case_00", "case_01", "case_02"], True), "folds were trained on other classes"
    assert json.loads((prepare.folder / "dataset.json").read_text())["labels"]["cyst"] == 3


def test_cases_of_an_older_version_are_kept_unless_their_labels_differ(root, prepare):
    prepare()
    record = prepare.folder / "identifier.complete.json"
    record.write_text(json.dumps({"cases": json.loads(record.read_text())["cases"]}))
    assert prepare() == ([], False)
    record.write_text(json.dumps({"cases": json.loads(record.read_text())["cases"]}))
    shutil.copyfile(root / "labelsTr" / "case_02.nii.gz", root / "labelsTr" / "case_00.nii.gz")
    assert prepare() == (["case_00"], True)


def test_linked_data_of_others_are_kept(root, prepare, tmp_path):
    prepare()
    (prepare.folder / "identifier").rename(tmp_path / "shared")
    (tmp_path / "shared" / "case").touch()
    (prepare.folder / "identifier").symlink_to(tmp_path / "shared")
    shutil.copyfile(root / "imagesTr" / "case_02_0000.nii.gz", root / "imagesTr" / "case_00_0000.nii.gz")
    assert prepare() == (["case_00"], True)
    assert (tmp_path / "shared" / "case").is_file()


def test_folds_that_were_trained_before_a_change_are_named(caplog, tmp_path):
    model = SimpleNamespace(fold=lambda number: tmp_path / f"fold_{number}", is_trained=lambda number: number == 1)
    finetune._report_changed(model, ["case_00"], [0, 1])
    assert "case_00" in caplog.text
    assert "fold_1" in caplog.text
    assert "fold_0" not in caplog.text
