from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from viewalign.data.content import otsu_threshold
from viewalign.data.geometry import resample, resample_labels, resampled_shape
from viewalign.data.preprocessing import content_box, normalise, prepare_channels, prepare_volume
from viewalign.data.readers.files import Volume, voxel_to_world
from viewalign.data.settings import PrepareSettings
from viewalign.errors import ExcludedImageError


def oblique() -> np.ndarray:
    c, s = np.cos(0.2), np.sin(0.2)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def grid_world(shape, spacing, origin, direction) -> np.ndarray:
    matrix = voxel_to_world(spacing, origin, np.array(direction))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def ramp(world: np.ndarray) -> np.ndarray:
    return 500 + world @ np.array([1.0, 3.0, 5.0])


def ramp_volume(shape=(12, 20, 16), spacing=(2.3, 0.8, 1.7)) -> Volume:
    origin = (3.0, -2.0, 7.0)
    array = ramp(grid_world(shape, spacing, origin, oblique())).astype(np.float32)
    return Volume(array, spacing, origin, oblique())


@pytest.mark.parametrize("target", [(1.0, 1.0, 1.0), (3.0, 2.0, 1.5), (0.7, 0.7, 2.9)])
def test_resampling_moves_nothing(target: tuple[float, float, float]) -> None:
    prepared = prepare_volume(ramp_volume(), PrepareSettings(spacing=target, normalise="none"))
    p = prepared.properties
    world = grid_world(p["shape"], p["spacing"], p["origin"], p["direction"])
    inside = (slice(3, -3), slice(3, -3), slice(3, -3))  # beyond the outermost centres the edge value is held
    assert prepared.array[inside].size > 0
    np.testing.assert_allclose(prepared.array[inside], ramp(world)[inside], atol=1e-2)


def test_the_true_spacing_keeps_the_extent() -> None:
    volume = ramp_volume()
    p = prepare_volume(volume, PrepareSettings()).properties
    np.testing.assert_allclose(
        np.multiply(p["shape"], p["spacing"]), np.multiply(volume.array.shape, volume.spacing), rtol=1e-12
    )
    assert p["shape"] == [28, 16, 27]


def test_the_crop_is_recorded_and_moves_nothing() -> None:
    volume = ramp_volume()
    array = np.zeros_like(volume.array)
    array[2:9, 5:18, 1:7] = volume.array[2:9, 5:18, 1:7]
    padded = Volume(array, volume.spacing, volume.origin, volume.direction)
    prepared = prepare_volume(padded, PrepareSettings(spacing=None, normalise="none"))
    p = prepared.properties
    assert p["crop_box"] == [[2, 9], [5, 18], [1, 7]]
    world = grid_world(p["shape"], p["spacing"], p["origin"], p["direction"])
    np.testing.assert_allclose(prepared.array, ramp(world), atol=1e-2)
    np.testing.assert_array_equal(padded.array, array)


def test_properties_have_shape_checksum_and_origin_of_all() -> None:
    volume = ramp_volume()
    prepared = prepare_volume(volume, PrepareSettings())
    p = prepared.properties
    assert tuple(p["shape"]) == prepared.array.shape
    assert p["original_shape"] == [12, 20, 16]
    assert p["original_spacing"] == list(volume.spacing)
    assert p["checksum"] == hashlib.sha256(prepared.array.tobytes()).hexdigest()


def test_zscore_takes_the_whole_crop() -> None:
    array = np.zeros((4, 4, 4), np.float32)
    array[1:] = 6.0
    array[0, 0] = 2.0
    whole = array.copy()
    assert normalise(whole, "zscore") == pytest.approx((array.mean(), array.std()), rel=1e-6)
    assert whole.mean() == pytest.approx(0, abs=1e-6)
    assert whole.std() == pytest.approx(1, rel=1e-6)


def test_foreground_takes_non_zero_voxels_only() -> None:
    rng = np.random.default_rng(0)
    array = (rng.normal(50, 5, (6, 6, 6)) * (rng.random((6, 6, 6)) < 0.5)).astype(np.float32)
    inside = array != 0
    given = array.copy()
    assert normalise(given, "foreground") == pytest.approx((array[inside].mean(), array[inside].std()), rel=1e-5)
    assert given[inside].mean() == pytest.approx(0, abs=1e-5)
    assert given[inside].std() == pytest.approx(1, rel=1e-5)


def test_no_normalisation_leaves_the_values() -> None:
    array = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    assert normalise(array, "none") == (0.0, 1.0)
    np.testing.assert_array_equal(array.ravel(), np.arange(8))


def test_float16_is_stored_as_such() -> None:
    prepared = prepare_volume(ramp_volume(), PrepareSettings(dtype="float16"))
    assert prepared.array.dtype == np.float16


def test_masks_follow_the_image() -> None:
    volume = ramp_volume()
    mask = (volume.array > np.median(volume.array)).astype(np.uint8)
    turned = Volume(volume.array[:, ::-1], volume.spacing, volume.origin, volume.direction @ np.diag([1.0, -1.0, 1.0]))
    prepared = prepare_volume(turned, PrepareSettings(normalise="none"), {"anatomy": mask[:, ::-1]})
    stored = prepared.masks["anatomy"]
    assert stored.dtype == np.uint8
    assert stored.shape == prepared.array.shape
    agree = (stored == 1) == (prepared.array > np.median(volume.array))
    assert agree.mean() > 0.9


@pytest.mark.parametrize("new", [(9, 5, 7), (4, 11, 7), (1, 3, 20), (17, 16, 15), (6, 8, 7)])
def test_resampling_agrees_with_torch(new: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).normal(size=(6, 8, 7)).astype(np.float32)
    source = torch.from_numpy(array)[None, None]
    expected = torch.nn.functional.interpolate(source, size=new, mode="trilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(resample(array, new), expected, atol=1e-5)
    np.testing.assert_array_equal(resample(array[::-1], new), resample(np.ascontiguousarray(array[::-1]), new))


def test_labels_take_the_voxel_their_centre_lies_in() -> None:
    labels = np.array([1, 2, 3], np.uint8).reshape(3, 1, 1)
    np.testing.assert_array_equal(resample_labels(labels, (6, 1, 1)).ravel(), [1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(resample_labels(labels, (1, 1, 1)).ravel(), [2])


def test_a_thin_volume_never_vanishes() -> None:
    assert resampled_shape((2, 50, 50), (0.1, 1.0, 1.0), (1.0, 1.0, 1.0)) == (1, 50, 50)


def test_content_box_against_a_plain_reference() -> None:
    rng = np.random.default_rng(1)
    array = rng.random((7, 8, 9)) * (rng.random((7, 8, 9)) < 0.01)
    array[2, 3, 4] = array[5, 6, 5] = 1
    places = np.argwhere(array)
    assert content_box(array) == tuple(zip(places.min(0), places.max(0) + 1, strict=True))


def test_content_in_one_slice_is_rejected() -> None:
    array = np.zeros((5, 5, 5), np.float32)
    array[2] = np.arange(25).reshape(5, 5)
    with pytest.raises(ExcludedImageError, match="one slice"):
        content_box(array)


def test_content_without_contrast_is_rejected() -> None:
    array = np.zeros((6, 6, 6), np.float32)
    array[1:5, 1:5, 1:5] = 7
    with pytest.raises(ExcludedImageError, match="contrast"):
        prepare_volume(Volume(array, (1, 1, 1), (0, 0, 0), np.eye(3)), PrepareSettings())


def test_a_huge_spacing_is_rejected_before_resampling() -> None:
    volume = Volume(np.arange(64, dtype=np.float32).reshape(4, 4, 4) + 1, (1e4, 1e4, 1e4), (0, 0, 0), np.eye(3))
    with pytest.raises(ExcludedImageError, match="limit"):
        prepare_volume(volume, PrepareSettings())


def test_otsu_parts_two_populations() -> None:
    rng = np.random.default_rng(0)
    array = np.concatenate([rng.normal(0, 0.1, 4000), rng.normal(5, 0.1, 4000)]).reshape(20, 20, 20).astype(np.float32)
    threshold = otsu_threshold(array)
    assert (array[:10] < threshold).mean() > 0.99
    assert (array[10:] > threshold).all()


@pytest.mark.parametrize("new", [(9, 5, 7), (4, 11, 7), (20, 3, 150), (6, 8, 7)])
def test_cubic_agrees_with_the_spline_of_scipy(new: tuple[int, int, int]) -> None:
    """The reference evaluates each voxel from 64 coefficients of the volume's B-spline, one volume at a time."""
    ndimage = pytest.importorskip("scipy.ndimage")
    array = np.random.default_rng(0).normal(size=(6, 80, 7)).astype(np.float32)
    lines = [np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1) for n, old in zip(new, array.shape, strict=True)]
    grid = np.stack(np.meshgrid(*lines, indexing="ij"))
    expected = ndimage.map_coordinates(array.astype(np.float64), grid, order=3, mode="mirror")
    np.testing.assert_allclose(resample(array, new, "cubic"), expected, atol=2e-5)


def test_cubic_keeps_a_cubic_polynomial() -> None:
    """Splines of order 3 reproduce polynomials of degree 3, away from the ends (where they are mirrored)."""
    x = np.linspace(-1, 1, 64)
    line = (x**3 - 0.5 * x**2 + x).astype(np.float32)
    finer = resample(line.reshape(-1, 1, 1), (160, 1, 1), "cubic").ravel()
    place = (np.arange(160) + 0.5) * 64 / 160 - 0.5
    at = -1 + place * 2 / 63
    np.testing.assert_allclose(finer[40:-40], (at**3 - 0.5 * at**2 + at)[40:-40], atol=1e-5)


def test_a_window_becomes_minus_one_to_one() -> None:
    array = np.array([-2000, -1000, -500, 0, 500, 1000, 3000, 50], np.float32).reshape(2, 2, 2)
    assert normalise(array, "window", window=(-1000, 1000)) == (0.0, 1000.0)
    np.testing.assert_allclose(array.ravel(), [-1, -1, -0.5, 0, 0.5, 1, 1, 0.05])
    with pytest.raises(ExcludedImageError, match="5000 to 6000"):
        normalise(np.arange(8, dtype=np.float32).reshape(2, 2, 2), "window", window=(5000, 6000))


def test_percentiles_clip_outliers_before_the_zscore() -> None:
    array = np.random.default_rng(0).normal(100, 10, (20, 20, 20)).astype(np.float32)
    array[0, 0, 0] = 1e6
    low, high = np.percentile(array, (1, 99))
    expected = np.clip(array, low, high)
    mean, std = normalise(array, "percentile", (1.0, 99.0))
    assert (mean, std) == pytest.approx((expected.mean(), expected.std()), rel=1e-5)
    np.testing.assert_allclose(array * std + mean, expected, rtol=1e-4)


def test_otsu_agrees_with_itk() -> None:
    from viewalign.data.readers.itk import sitk

    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.8):
        dark = rng.random((24, 24, 24)) < share
        array = np.where(dark, rng.normal(0, 1, dark.shape), rng.normal(6, 2, dark.shape)).astype(np.float32)
        otsu = sitk.OtsuThresholdImageFilter()
        otsu.Execute(sitk.GetImageFromArray(array))
        width = float(array.max() - array.min()) / 128
        assert otsu_threshold(array) == pytest.approx(otsu.GetThreshold(), abs=1.5 * width)


def frames(count: int = 3) -> list[Volume]:
    volume = ramp_volume()
    return [Volume(volume.array * (k + 1), volume.spacing, volume.origin, volume.direction) for k in range(count)]


def test_frames_become_channels_normalised_each_by_itself() -> None:
    given = frames()
    prepared = prepare_channels(given, PrepareSettings())
    assert prepared.array.shape == (3, *prepared.properties["shape"])
    alone = prepare_volume(given[0], PrepareSettings()).array
    for channel in prepared.array:
        np.testing.assert_allclose(channel, alone, atol=1e-4)
    p = prepared.properties
    assert (p["channels"], len(p["means"])) == (3, 3)
    assert p["means"][2] == pytest.approx(3 * p["mean"], rel=1e-5)
