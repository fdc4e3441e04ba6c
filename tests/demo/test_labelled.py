"""Label maps are found, and subjects of the probe are excluded from pretraining."""

import nibabel
import numpy as np
import pytest

from viewalign.data.indexing import index_sources
from viewalign.data.settings import PrepareSettings
from viewalign.demo.probe import find_labels, hold_out, load_cases, without


def write(path, array, spacing=2.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([spacing] * 3 + [1.0])), path)


def folder_of(tmp_path, labelled, plain):
    rng = np.random.default_rng(0)
    for number in range(labelled + plain):
        array = rng.normal(100, 10, size=(12, 10, 8)).astype(np.float32)
        write(tmp_path / "images" / f"sub-{number:02d}_T1w.nii.gz", array)
        if number < labelled:
            write(tmp_path / "labels" / f"sub-{number:02d}_T1w.nii.gz", (array > 100).astype(np.uint8) * 2)
    return index_sources([str(tmp_path / "images")]).collection


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("a/x.nii.gz", "a/x_seg.nii.gz"),
        ("a/x.nrrd", "a/x_label.nii.gz"),
        ("images/x.nii.gz", "labels/x.nii.gz"),
        ("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz"),
    ],
)
def test_label_maps_are_found(tmp_path, image, labels):
    for name in (image, labels):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_labels(tmp_path / image) == tmp_path / labels
    (tmp_path / labels).unlink()
    assert find_labels(tmp_path / image) is None


def test_held_out_subjects_are_disjoint_and_not_pretrained_on(tmp_path):
    collection = folder_of(tmp_path, labelled=12, plain=12)
    held = hold_out(collection.records(), seed=0)
    train, test = ({each.record.subject_id for each in part} for part in (held.train, held.test))
    assert (len(train), len(test)) == (4, 6)
    assert not train & test
    left = {record.subject_id for record in without(collection, held.subjects).records()}
    assert not left & held.subjects
    assert len(left) == 14
    assert hold_out(collection.records(), seed=0) == held


@pytest.mark.parametrize(("labelled", "plain", "count"), [(0, 9, 0), (3, 9, 0), (6, 1, 0), (8, 0, 4), (5, 5, 5)])
def test_pretraining_keeps_at_least_half(tmp_path, labelled, plain, count):
    collection = folder_of(tmp_path, labelled, plain)
    held = hold_out(collection.records(), seed=0)
    assert len(held.subjects) == count
    assert bool(held) == (count > 0)


def test_labels_are_prepared_with_their_image(tmp_path):
    collection = folder_of(tmp_path, labelled=8, plain=0)
    held = hold_out(collection.records(), seed=0)
    case = next(iter(load_cases(held.train, PrepareSettings(spacing=(2.0, 2.0, 2.0)))))
    assert case.image.shape == (8, 10, 12)
    assert tmp_path.name not in case.name, "which voxels are drawn must not depend on where the data lie"
    inside = case.image[case.labels == 2]
    assert inside.min() > case.image[case.labels == 0].max() - 1e-3

    held.train[0].labels.write_bytes(b"nonsense")
    assert "excluded from the probe" in next(iter(load_cases(held.train, PrepareSettings())))
