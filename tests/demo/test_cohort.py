"""The synthetic cohort: deterministic, with labels that match the images."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from viewalign.demo import cohort as deforming
from viewalign.demo.cohort import CohortSettings, contrast_of, load_template, make_cohort, make_subject
from viewalign.errors import UserError

pytest.importorskip("nilearn")

pytestmark = pytest.mark.slow

COARSE = CohortSettings(unlabelled=3, labelled=2, spacing=6.0)


@pytest.fixture(scope="module")
def template():
    return load_template()


def test_a_subject_is_a_function_of_seed_and_number(template):
    first, again = (make_subject(template, 2, COARSE) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    other, reseeded = make_subject(template, 5, COARSE), make_subject(template, 2, CohortSettings(seed=1, spacing=6.0))
    assert not np.array_equal(first.labels, other.labels)
    assert not np.array_equal(first.labels, reseeded.labels)


@pytest.mark.parametrize("number", range(6))
def test_tissues_have_the_order_of_their_contrast(template, number):
    subject = make_subject(template, number, CohortSettings(spacing=4.0))
    fluid, grey, white = (subject.image[subject.labels == label].mean() for label in (1, 2, 3))
    expected = {"T1w": fluid < grey < white, "T2w": fluid > grey > white, "PDw": grey > white}
    assert expected[contrast_of(number)]


def test_labels_and_image_cover_the_same_voxels(template):
    subject = make_subject(template, 0, COARSE)
    np.testing.assert_array_equal(subject.image > 0, subject.labels > 0)
    assert set(np.unique(subject.labels)) == {0, 1, 2, 3}
    faces = [subject.labels.take([0, -1], axis=axis) for axis in range(3)]
    assert not any(face.any() for face in faces), "the brain is cut off"


def test_tissue_maps_are_probabilities(template):
    assert template.tissues.min() > -1e-5
    np.testing.assert_allclose(template.tissues.sum(axis=0), template.brain, atol=1e-5)


def test_fields_have_unit_deviation_and_do_not_fold():
    rng = np.random.default_rng(0)
    field = deforming.smooth_field(rng, (80, 70, 60), 2.0, 4.0)
    assert field.shape == (80, 70, 60)
    assert abs(field.std() - 1) < 0.1
    for seed in range(3):
        moved = deforming.displacement(np.random.default_rng(seed), (70, 80, 60), 2.0)
        assert 1.0 < moved.std() < 5.0
        jacobian = np.stack([np.stack(np.gradient(part, 2.0)) for part in moved]) + np.eye(3)[..., None, None, None]
        assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0


def test_affines_are_mild():
    for seed in range(20):
        matrix = deforming.random_affine(np.random.default_rng(seed))
        assert 0.75 < np.linalg.det(matrix) < 1.3
        assert np.abs(matrix - np.eye(3)).max() < 0.35


def test_files_are_disjoint_complete_and_kept(tmp_path):
    told = []
    make_cohort(tmp_path, COARSE, workers=0, on_subject=lambda done, total: told.append((done, total)))
    images = sorted(path.name for path in (tmp_path / "images").iterdir())
    labels = sorted(path.name for path in (tmp_path / "labels").iterdir())
    assert len(images) == 5
    assert labels == images[3:], "labelled subjects come after the unlabelled, and have images too"
    assert told[-1] == (5, 5)
    image, label = (nibabel.load(tmp_path / kind / labels[0]) for kind in ("images", "labels"))
    assert image.shape == label.shape
    np.testing.assert_array_equal(image.affine, label.affine)
    np.testing.assert_allclose(image.header.get_zooms(), 6.0)

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    lost = tmp_path / "labels" / labels[0]
    content = np.asarray(label.dataobj)
    lost.unlink()
    make_cohort(tmp_path, COARSE, workers=0)
    np.testing.assert_array_equal(np.asarray(nibabel.load(lost).dataobj), content)
    kept = [path for path in before if path.name != lost.name]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_missing_extras_are_named(monkeypatch):
    import viewalign.demo.cohort as module

    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "nilearn" else Path)
    with pytest.raises(UserError, match=r"pip install.*nilearn"):
        module.require_extras()
