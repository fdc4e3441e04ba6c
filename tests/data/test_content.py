"""Label maps are recognised by their voxels; images of whole numbers are not taken for them."""

import numpy as np
import pytest

from viewalign.data.content import clean_values, empty_end, label_map_reason
from viewalign.data.preprocessing import prepare_volume
from viewalign.data.readers.files import Volume, read_volume
from viewalign.data.settings import PrepareSettings


def blocks(labels: int, side: int = 6) -> np.ndarray:
    """A cube of structures of `side` voxels each, with background around them."""
    grid = np.random.default_rng(0).integers(1, labels + 1, (6, 6, 6))
    return np.pad(np.kron(grid, np.ones((side, side, side))), 8).astype(np.float32)


@pytest.mark.parametrize("labels", [1, 2, 5, 110])
def test_a_label_map_is_recognised(labels: int) -> None:
    assert label_map_reason(blocks(labels)) is not None
    assert label_map_reason(blocks(labels) + 1000) is not None


@pytest.mark.parametrize(("low", "high"), [(0, 0.5), (0.25, 0.75), (-1.5, 1e-3)])
def test_a_mask_of_any_two_values_is_recognised(low: float, high: float) -> None:
    mask = np.where(blocks(1) == 1, np.float32(high), np.float32(low))
    assert "2 distinct values" in (label_map_reason(mask) or "")
    mask[20, 20, 20:22] = 0.6, 0.7
    assert label_map_reason(mask) is None


def test_images_are_not_label_maps() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(100, 20, (30, 30, 30)).astype(np.float32)
    assert label_map_reason(noise) is None
    assert label_map_reason(np.rint(noise)) is None
    assert label_map_reason(blocks(110) * 1.37) is None
    many = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    assert label_map_reason(np.kron(many, np.ones((6, 6, 6), np.float32))) is None  # more values than any label map
    smooth = np.rint(np.add.outer(np.arange(40), np.add.outer(np.arange(40), np.arange(40))) * 1.0)
    assert label_map_reason(smooth.astype(np.float32)) is None


def test_real_volumes(shared_data) -> None:
    maps = [
        *sorted((shared_data / "head_labelmaps").iterdir())[:2],
        *sorted((shared_data / "hippocampus/labels").iterdir())[:2],
    ]
    images = [
        *sorted((shared_data / "hippocampus/images").iterdir())[:2],
        *sorted((shared_data / "cardiac_cine/images").iterdir())[:2],
    ]
    assert all(label_map_reason(read_volume(path).array) for path in maps)
    assert not any(label_map_reason(read_volume(path).array) for path in images)


def ct(padding: float | None = None) -> np.ndarray:
    """Tissue of 40 ± 30 in air of −1000 ± 10, and a corner that was never measured."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(-1000, 10, (40, 40, 40)).astype(np.float32)
    voxels[10:30, 10:30, 10:30] = rng.normal(40, 30, (20, 20, 20))
    if padding is not None:
        voxels[:, :10, :10] = padding
    return voxels


@pytest.mark.parametrize("value", [-1500, -2000, -3024, -32768])
def test_padding_of_a_ct_takes_part_in_no_statistic(value: float) -> None:
    measured = np.ones((40, 40, 40), bool)
    measured[:, :10, :10] = False
    volume = Volume(ct(value), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    prepared = prepare_volume(volume, PrepareSettings(spacing=None))
    assert prepared.properties["padding_value"] == [value]
    assert prepared.properties["mean"] == pytest.approx(ct()[measured].mean(), rel=1e-5)
    assert prepared.properties["std"] == pytest.approx(ct()[measured].std(), rel=1e-5)
    assert prepared.array[~measured].max() <= prepared.array[measured].min() + 0.5


@pytest.mark.parametrize(("voxels", "value", "padded"), [(200, -1500, True), (600, -1500, False), (600, -1100, True)])
def test_a_lowest_value_with_many_values_between_it_and_air_is_no_padding(
    voxels: int, value: float, padded: bool
) -> None:
    image = ct(-2000)
    image.reshape(-1)[np.flatnonzero(image > -2000)[:voxels]] = value
    assert (clean_values(image).padding_value == -2000) is padded


@pytest.mark.parametrize("value", [1e30, -1e30, 65535.0])
def test_absurd_voxels_are_clipped(value: float) -> None:
    voxels = np.random.default_rng(0).normal(500, 100, (30, 30, 30)).astype(np.float32)
    voxels[3, 4, 5] = value
    clean = clean_values(voxels)
    assert clean.clipped == 1
    assert clean.limits is not None
    assert clean.array[3, 4, 5] == np.float32(clean.limits[value > 0])
    assert voxels[3, 4, 5] == np.float32(value)
    others = np.ones(voxels.shape, bool)
    others[3, 4, 5] = False
    assert np.array_equal(clean.array[others], voxels[others])
    assert abs(float(clean.array[3, 4, 5])) < 20_000


def test_ordinary_values_stay() -> None:
    rng = np.random.default_rng(0)
    vessels = rng.normal(100, 30, (40, 40, 40)).astype(np.float32)
    vessels[20, 20, :] = 900  # brighter than the rest, and more than a few voxels
    low_dose = ct()
    low_dose[5:8] = rng.normal(-1150, 40, (3, 40, 40))
    for voxels in (vessels, ct(), low_dose, np.zeros((8, 8, 8), np.float32)):
        assert clean_values(voxels).array is voxels


@pytest.mark.parametrize("voxels", [1, 500, 3 * 12 * 10 + 7])
def test_zeros_at_the_end_of_a_file_are_measured(voxels: int) -> None:
    image = np.random.default_rng(0).uniform(1, 9, (12, 12, 10)).astype(np.float32)
    assert empty_end(image) == 0
    image.reshape(-1)[-voxels:] = 0
    assert empty_end(image) == pytest.approx(voxels / image.size if voxels >= 120 else 0)


def test_a_masked_head_and_an_empty_image_have_no_empty_end() -> None:
    image = np.zeros((12, 12, 12), dtype=np.float32)
    assert empty_end(image) == 0
    image[2:10, 2:10, 2:10] = 5
    assert empty_end(image) == 0
