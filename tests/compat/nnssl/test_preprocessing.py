"""Preprocessing of an image against a plain reference in float64."""

import pickle

import numpy as np
import pytest

from viewalign.compat.nnssl.plans import plan
from viewalign.compat.nnssl.preprocessing import prepare_image
from viewalign.data.readers.files import Volume
from viewalign.errors import ExcludedImageError

SPACINGS = {"isotropic": (1.2, 0.9, 1.1), "thick": (4.0, 0.8, 0.9), "thick last": (0.8, 0.9, 4.0)}


def volume(spacing, seed=0, shape=(14, 26, 22)):
    rng = np.random.default_rng(seed)
    array = np.zeros(shape, dtype=np.float32)
    array[2:-1, 3:-4, 1:-2] = 100 + 20 * rng.normal(size=(shape[0] - 3, shape[1] - 7, shape[2] - 3))
    array[5, 8:10, 8:10] = 0  # a hole, which is no border
    return Volume(array, spacing, (1.0, 2.0, 3.0), np.eye(3))


def reference(array, spacing, target, forward, order, is_seg=False):
    """Transpose, crop, z-score, resample: every step spelled out."""
    ndimage = pytest.importorskip("scipy.ndimage")
    resize = pytest.importorskip("skimage.transform").resize
    turned = np.transpose(array.astype(float), forward)
    spacing = [spacing[axis] for axis in forward]
    inside = np.argwhere(turned != 0)
    box = tuple(slice(low, high + 1) for low, high in zip(inside.min(0), inside.max(0), strict=True))
    cropped = turned[box]
    cropped = (cropped - cropped.mean()) / cropped.std()
    if target is None:
        return cropped, box
    new = [round(n * old / wanted) for n, old, wanted in zip(cropped.shape, spacing, target, strict=True)]
    how = {"order": order, "mode": "edge", "anti_aliasing": False, "preserve_range": True}
    if max(spacing) / min(spacing) <= 3:
        return resize(cropped, new, **how), box
    axis = int(np.argmax(spacing))
    plane = [n for a, n in enumerate(new) if a != axis]
    slices = np.stack([resize(cut, plane, **how) for cut in np.moveaxis(cropped, axis, 0)])
    grid = list(np.meshgrid(*(np.arange(n) for n in (new[axis], *plane)), indexing="ij"))
    grid[0] = (grid[0] + 0.5) * len(slices) / new[axis] - 0.5
    return np.moveaxis(ndimage.map_coordinates(slices, grid, order=0, mode="nearest"), 0, axis), box


@pytest.mark.parametrize("configuration", ["onemmiso", "median", "noresample"])
@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_voxels_agree_with_the_plain_reference(spacing, configuration):
    given = volume(spacing)
    plans = plan("Dataset001_X", [spacing, (1.0, 1.0, 1.0), (1.5, 1.0, 2.0)])
    how = plans.configurations[configuration]
    made = prepare_image(given, {}, how, plans.transpose_forward)
    expected, box = reference(given.array, spacing, how.spacing, plans.transpose_forward, 3)
    assert made.array.dtype == np.float32
    np.testing.assert_allclose(made.array, expected, atol=2e-5)
    assert made.pickled["bbox_used_for_cropping"] == [[ends.start, ends.stop] for ends in box]


def test_masks_are_prepared_as_the_image_without_minus_one():
    given = volume(SPACINGS["isotropic"])
    mask = np.zeros(given.array.shape, dtype=np.uint8)
    mask[:, 10:] = 1
    plans = plan("Dataset001_X", [given.spacing])
    made = prepare_image(given, {"anatomy": mask}, plans.configurations["onemmiso"], plans.transpose_forward)
    found = made.masks["anatomy"]
    assert found.shape == made.array.shape
    assert set(np.unique(found)) == {0, 1}
    # The crop begins at row 3, so that the edge at row 10 lies 7 rows of 0.9 mm deep.
    edge = np.flatnonzero(found.any(axis=(0, 2)))[0]
    assert abs(edge - 7 * 0.9) <= 0.5


def test_the_axis_of_the_largest_voxels_comes_first():
    given = volume(SPACINGS["thick last"], shape=(20, 26, 14))
    plans = plan("Dataset001_X", [given.spacing])
    assert plans.transpose_forward == (2, 0, 1)
    made = prepare_image(given, {}, plans.configurations["noresample"], plans.transpose_forward)
    assert made.array.shape == (11, 17, 19)
    assert made.facts["spacing"] == [4.0, 0.8, 0.9]


def test_the_pickled_properties_are_plain_values_of_nnssl():
    given = volume(SPACINGS["isotropic"])
    plans = plan("Dataset001_X", [given.spacing])
    pickled = prepare_image(given, {}, plans.configurations["onemmiso"], plans.transpose_forward).pickled
    assert pickled["spacing"] == [1.2, 0.9, 1.1]
    assert pickled["sitk_stuff"]["spacing"] == (1.1, 0.9, 1.2)
    assert pickled["sitk_stuff"]["origin"] == (1.0, 2.0, 3.0)
    assert pickled["sitk_stuff"]["direction"] == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    forward = plans.transpose_forward
    assert pickled["shape_before_cropping"] == tuple(given.array.shape[axis] for axis in forward)
    class_names = [op for op in pickle.dumps(pickled, protocol=4).split(b"\n") if b"numpy" in op]
    assert not class_names, "only plain numbers, so that reading needs no class"


def test_unusable_images_are_excluded_with_the_reason():
    plans = plan("Dataset001_X", [(1.0, 1.0, 1.0)])
    thin = Volume(volume((1, 1, 1)).array[2:5], (0.1, 1.0, 1.0), (0, 0, 0), np.eye(3))
    with pytest.raises(ExcludedImageError, match="one slice"):
        prepare_image(thin, {}, plans.configurations["onemmiso"], (0, 1, 2))
