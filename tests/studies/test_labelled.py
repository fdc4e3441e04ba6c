"""Labelled cases are prepared once for all arms and seeds, and again when a file changes."""

import os
from pathlib import Path

import numpy as np
import pytest

from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.evaluation.voxel_probe import read_prepared
from viewalign.studies import labelled
from viewalign.studies.labelled import Labelled, LabelledCase, prepared_store, read_case, read_labelled
from viewalign.studies.settings import DataSettings, LabelledSettings

from .conftest import write_data


@pytest.fixture
def counted(monkeypatch):
    made = []

    def prepare(name, *given):
        made.append(name)
        return read_prepared(name, *given)

    monkeypatch.setattr(labelled, "read_prepared", prepare)
    return made


def test_labels_above_255_stay_apart(tmp_path):
    rng = np.random.default_rng(0)
    for name, array in (
        ("image", rng.normal(100, 9, (8, 8, 8))),
        ("labels", rng.choice([0, 17, 1001, 1002, 2035], (8, 8, 8))),
    ):
        sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.float32)), str(tmp_path / f"{name}.nii.gz"))
    case = LabelledCase("c", tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz")
    found = read_case(case, PrepareSettings(), tmp_path / "kept")
    assert np.unique(found.labels).tolist() == [0, 17, 1001, 1002, 2035]


def test_a_case_is_prepared_once_and_is_the_same(tmp_path, counted):
    write_data(tmp_path)
    case, kept = (
        LabelledCase("c0", tmp_path / "images" / "c0.nii.gz", tmp_path / "labels" / "c0.nii.gz"),
        tmp_path / "k",
    )
    settings = PrepareSettings()
    plain = read_prepared("c0", case.image, case.labels, settings)
    for _ in range(2):
        found = read_case(case, settings, kept)
        np.testing.assert_array_equal(found.image, plain.image)
        np.testing.assert_array_equal(found.labels, plain.labels)
        assert (found.image.dtype, found.labels.dtype) == (plain.image.dtype, plain.labels.dtype)
        found.image[:] = 0  # stays with this reader
    assert counted == ["c0"]
    read_case(case, PrepareSettings(spacing=(2.0, 2.0, 2.0)), kept)
    os.utime(case.labels, ns=(1, 1))
    read_case(case, settings, kept)
    assert len(counted) == 3
    assert not list(kept.glob(".*"))


def test_cases_without_reliable_stamps_are_not_cached(tmp_path, counted):
    """A detached header stays as it is when its voxels change."""
    write_data(tmp_path)
    labels, header = tmp_path / "labels" / "c0.nii.gz", tmp_path / "c0.mhd"
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "images" / "c0.nii.gz")), str(header))
    for _ in range(2):
        read_case(LabelledCase("c0", header, labels), PrepareSettings(), tmp_path / "k")
    assert len(counted) == 2
    assert not (tmp_path / "k").exists()
    with pytest.raises(UserError, match=r"gone\.nii\.gz"):
        read_case(LabelledCase("c0", tmp_path / "gone.nii.gz", labels), PrepareSettings(), tmp_path / "k")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_a_case_whose_labels_were_redrawn_is_another(tmp_path, ending):
    """A file that is not compressed keeps its size."""
    image, labels = tmp_path / f"image{ending}", tmp_path / f"labels{ending}"
    array = np.zeros((96, 96, 96), np.uint8)
    for path in (image, labels):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    case = LabelledCase("c0", image, labels)
    before = case.identity
    os.utime(labels, ns=(1, 1))
    os.utime(image, ns=(1, 1))
    assert case.identity == before, "a copy is the same"
    array[40, 40, 40] = 1
    sitk.WriteImage(sitk.GetImageFromArray(array), str(labels))
    assert case.identity != before
    assert case.identity[:2] == before[:2]


def store_of(folder, **source):
    data = DataSettings.model_validate({"source": {"folder": "images", **source}})
    return prepared_store(data, folder, folder / "out", False)


def test_a_changed_image_is_prepared_again(tmp_path):
    """A file that is not compressed keeps its size."""
    file = tmp_path / "images" / "a.nii"
    file.parent.mkdir()
    stores = []
    for value in (0, 1):
        sitk.WriteImage(sitk.GetImageFromArray(np.full((8, 8, 8), value, np.float32)), str(file))
        stores.append(store_of(tmp_path))
    before, after = stores
    assert before != after
    os.utime(file, ns=(1, 1))
    assert store_of(tmp_path) == after, "a copy is the same"
    assert store_of(tmp_path, prepare={"spacing": 2}) == store_of(tmp_path, prepare={"spacing": [2.0, 2, 2]}) != after
    with pytest.raises(UserError, match=r"zzz\*"):
        store_of(tmp_path, only=["a*", "zzz*"])
    with pytest.raises(UserError, match=r"data\.source\.prepare.*'spacing'"):
        store_of(tmp_path, prepare={"spacng": 1})
    assert not (tmp_path / "out").exists()


def test_shots_count_patients():
    names = [f"p{patient}_{visit}" for patient in range(6) for visit in range(2)]
    cases = tuple(LabelledCase(name, Path(name), Path(name)) for name in names)
    found = Labelled(cases, (), {}, r"(p\d)_")
    for draw in ("spread", "seed"):
        drawn = [case.name for case in found.shots(2, draw, 0)]
        assert len(drawn) == 4
        assert len({name[:2] for name in drawn}) == 2
    assert [case.name for case in found.shots(2, "spread", 0)] == ["p0_0", "p0_1", "p5_0", "p5_1"]
    with pytest.raises(UserError, match="6 patients"):
        found.shots(7, "seed", 0)


def test_a_patient_in_both_parts_is_an_error(tmp_path):
    write_data(tmp_path)
    asked = {"images": "images", "labels": "labels", "learn": ("c0",), "test": ("c[12]",)}
    assert read_labelled(LabelledSettings(**asked, patient="(c.)"), tmp_path).patients["c1"] == "c1"
    with pytest.raises(UserError, match="patients"):
        read_labelled(LabelledSettings(**asked, patient="(c)"), tmp_path)


def test_a_table_of_cases_from_a_spreadsheet(tmp_path):
    for name in ("a.nii", "b.nii", "l.nii"):
        (tmp_path / name).touch()
    table = tmp_path / "cases.csv"
    table.write_text("\ufeffcase;image;labels;split\nc1;a.nii;l.nii;test\nc2;b.nii;l.nii;\n", encoding="utf-8")
    cases, splits = labelled.in_table(table)
    assert [case.name for case in cases] == ["c1", "c2"]
    assert splits == {"c1": "test", "c2": ""}
    for text, told in (
        (b"case,image,labels\nc1,a.nii\n", r"row 1 \(c1\): labels"),
        ("case,image,labels\nä,a.nii,l.nii\n".encode("latin-1"), "UTF-8"),
        (b"case,image\nc1,a.nii\n", "missing: labels"),
    ):
        table.write_bytes(text)
        with pytest.raises(UserError, match=told):
            labelled.in_table(table)


def test_damaged_labels_are_named(tmp_path):
    file = tmp_path / "a.nii.gz"
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a\.nii\.gz"):
        labelled.classes_in([LabelledCase("a", file, file)])
