"""Arrays for the report's pictures: which volumes, which places, which colours."""

import numpy as np
import pytest
import torch

from viewalign.methods.base import StepResult
from viewalign.training import pictures
from viewalign.views import affines
from viewalign.views.batch import build_views
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

SIZE = (8, 10, 12)


@pytest.fixture(scope="module")
def sampled():
    rng = np.random.default_rng(0)
    source, number = ArraySource(rng.normal(size=(24, 24, 24))), np.zeros(1, dtype=np.int64)
    config = ViewSamplingConfig(SIZE, p_rotation=1.0)
    reader = SampleReader(source, number, number, config, 1, 0)
    samples = [reader[0], reader[1]]
    return samples, build_views(samples, SIZE, None, seed=0)


@pytest.mark.parametrize("number", [0, 1])
def test_points_of_a_pair_are_the_same_places_in_its_volume(sampled, number):
    samples, batch = sampled
    features = torch.randn(4, 6, 4, 5, 6)
    result = StepResult(torch.zeros(()), {}, pictures={"features": features, "input": batch.views.flatten(0, 1)})
    arrays = pictures.snapshot(batch, number, samples[number], result, (2, 3, 4), 2, step=7)
    points = torch.from_numpy(arrays["points"].astype(np.float64))
    assert points.shape == (2, 4 * 6 * 8, 3)
    a, b = (affines.apply(batch.to_volume[k, number], points[k]) for k in range(2))
    assert torch.allclose(a, b)
    assert ((points[0] >= -0.5) & (points[0] <= torch.tensor(SIZE) - 0.5)).all()
    assert np.array_equal(arrays["views"], batch.views[:, number, 0].half().numpy())
    assert np.array_equal(arrays["input"], arrays["views"])
    assert arrays["features"].shape == (2, 3, 4, 5, 6)
    assert (tuple(arrays["start"]), int(arrays["step"])) == (samples[number].start, 7)


def test_a_method_without_pairs_shows_one_view_and_no_points(sampled):
    samples, batch = sampled
    arrays = pictures.snapshot(batch, 0, samples[0], StepResult(torch.zeros(()), {}), (2, 2, 2), 1, 0, aligned=False)
    assert arrays["views"].shape == (1, *SIZE)
    assert "points" not in arrays


def test_the_three_volumes_that_vary_most_are_shown(sampled):
    from dataclasses import replace

    samples, _ = sampled
    scaled = [replace(samples[0], crop=samples[0].crop * factor) for factor in (1.0, 3.0, float("nan"), 2.0, 0.5, 4.0)]
    assert pictures.most_varied(scaled) == [5, 1, 3]
    assert [pictures.prefix(number) for number in range(3)] == ["", "volume2.", "volume3."]


def test_colours_are_the_principal_components_of_valid_cells():
    torch.manual_seed(0)
    rows = torch.randn(4096, 5) * torch.tensor([4.0, 0.1, 9.0, 1.0, 0.1])
    maps = rows.T.reshape(1, 5, 16, 16, 16)
    valid = torch.ones(1, 1, 32, 32, 32, dtype=torch.bool)
    colours = pictures.principal_colours(maps, valid)
    assert colours.shape == (1, 3, 16, 16, 16)
    flat = colours[0].flatten(1)
    for component, channel in enumerate((2, 0, 3)):
        assert np.corrcoef(flat[component], rows[:, channel])[0, 1] > 0.99
    for end in (0.0, 1.0):
        assert torch.allclose((flat == end).float().mean(1), torch.tensor(0.02), atol=0.002)
    dirty, valid[:, :, 16:] = maps.clone(), False
    dirty[:, :, 8:] = 1e4
    clean = pictures.principal_colours(maps[:, :, :8], valid[:, :, :16])
    assert torch.allclose(pictures.principal_colours(dirty, valid)[:, :, :8], clean, atol=1e-5)
    assert torch.isfinite(pictures.principal_colours(maps, torch.zeros_like(valid))).all()


def test_a_montage_has_the_middle_slices_in_a_row_for_each_volume():
    half = np.zeros((4, 6, 8), dtype=np.float16)
    half[2, :, 4:], half[1] = 50.0, 1e4
    nothing = np.full((1, 4, 6, 16), np.nan, dtype=np.float16)
    image = pictures.montage({"views": half[None], "targets": half[None] / 50, "volume2.views": nothing})
    assert (image.shape, image.dtype) == ((12, 16), np.uint8)
    assert (image[:6, 4:8] == 255).all()
    assert (image[:6, :4] == 0).all()
    assert (image[:6, 12:] == round(255 / 50)).all()
    assert not image[6:].any()


def test_a_montage_shows_the_range_from_the_1st_to_the_99th_percentile():
    values = np.arange(101, dtype=np.float16)
    (row,) = pictures.montage({"views": values.reshape(1, 1, 1, 101)})
    expected = ((values.astype(np.float64) - 1) / 98).clip(0, 1) * 255
    assert np.abs(row - expected).max() <= 0.5 + 1e-3


def test_written_arrays_are_read_as_they_were(tmp_path):
    arrays = {"views": np.arange(6, dtype=np.float16).reshape(1, 2, 3), "volume2.step": np.array(7)}
    pictures.write(tmp_path / "pictures.npz", arrays)
    found = pictures.read(tmp_path / "pictures.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
