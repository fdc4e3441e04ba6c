"""Resampling against scikit-image and nnU-Net, which nnssl's is."""

import numpy as np
import pytest

from viewalign.compat.nnssl.preprocessing import resample_image, resample_mask, thick_axis

SHAPES = [((20, 24, 18), (26, 20, 18)), ((20, 24, 18), (10, 12, 9)), ((7, 9, 11), (14, 18, 22))]


def image(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_cubic_is_that_of_scikit_image(old, new):
    resize = pytest.importorskip("skimage.transform").resize
    array = image(old)
    expected = resize(array.astype(float), new, order=3, mode="edge", anti_aliasing=False, preserve_range=True)
    np.testing.assert_allclose(resample_image(array, new), expected, atol=1e-5)


def test_a_ramp_stays_a_ramp():
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (5, 6, 40))
    place = (np.arange(60) + 0.5) * 40 / 60 - 0.5
    inside = slice(9, -9)  # a spline of order 3 feels the edge some voxels deep
    np.testing.assert_allclose(resample_image(ramp, (5, 6, 60))[2, 3, inside], place[inside], atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_thick_slices_are_those_of_nnunet(old, new, axis):
    theirs = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 4.0
    array, labels = image(old), (image(old, 1) > 0.3).astype(np.uint8)
    how = {"current_spacing": spacing, "new_spacing": [1.0, 1.0, 1.0], "order_z": 0, "force_separate_z": None}
    expected = theirs.resample_data_or_seg_to_shape(array[None].astype(float), new, is_seg=False, order=3, **how)[0]
    np.testing.assert_allclose(resample_image(array, new, axis), expected, atol=1e-5)
    expected = theirs.resample_data_or_seg_to_shape(labels[None].astype(float), new, is_seg=True, order=1, **how)[0]
    assert (resample_mask(labels, new, axis) != expected).sum() == 0


@pytest.mark.parametrize(("old", "new"), SHAPES)
def test_labels_are_those_of_nnunet(old, new):
    theirs = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    labels = np.digitize(image(old), [-0.5, 0.5]).astype(np.uint8)
    how = {"current_spacing": [1.0] * 3, "new_spacing": [1.0] * 3, "force_separate_z": None}
    expected = theirs.resample_data_or_seg_to_shape(labels[None].astype(float), new, is_seg=True, order=1, **how)[0]
    assert (resample_mask(labels, new) != expected).sum() == 0
    assert resample_mask(labels, new).dtype == np.uint8


@pytest.mark.parametrize(
    ("current", "target", "force", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None, None),
        ((4, 1, 1), (1, 1, 1), None, 0),
        ((1, 1, 3.1), (1, 1, 1), None, 2),
        ((3, 1, 1), (1, 1, 1), None, None),
        ((1, 1, 1), (1, 5, 1), None, 1),
        ((4, 4, 1), (1, 1, 1), None, None),
        ((2, 1, 1), (1, 1, 1), True, 0),
        ((9, 1, 1), (1, 1, 1), False, None),
    ],
)
def test_which_axis_is_thick(current, target, force, axis):
    assert thick_axis(current, target, force) == axis
    theirs = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    assert theirs.determine_do_sep_z_and_axis(force, current, target) == (axis is not None, axis)


def test_the_same_shape_is_the_same_voxels():
    array = image((5, 6, 7))
    np.testing.assert_array_equal(resample_image(array, (5, 6, 7)), array)
    assert not np.shares_memory(resample_image(array, (5, 6, 7)), array)
