"""Warping by affines and displacement fields, against scipy and known shifts."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from viewalign.utils.rng import make_rng
from viewalign.views.feature_grids import resize
from viewalign.views.resampling import cell_centres, map_grid, sample_displacement_field, voxel_to_cell, warp

SIZE = (8, 9, 7)


def test_warping_agrees_with_scipy():
    rng = np.random.default_rng(0)
    images, where = rng.normal(size=(2, 3, *SIZE)), rng.uniform(-2, 10, (2, 4, 5, 6, 3))
    out = warp(torch.from_numpy(images), torch.from_numpy(where)).numpy()
    for k in range(2):
        for channel in range(3):
            expected = map_coordinates(images[k, channel], np.moveaxis(where[k], -1, 0), order=1, mode="grid-constant")
            assert np.abs(out[k, channel] - expected).max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shift_by_whole_voxels_is_a_slice(dtype):
    images = torch.randn(1, 1, *SIZE, dtype=dtype)
    affine = torch.eye(3, 4, dtype=dtype)[None]
    field = torch.tensor([2.0, -1.0, 0.0], dtype=dtype).view(1, 3, 1, 1, 1).expand(1, 3, *SIZE)
    out = warp(images, map_grid(affine, SIZE, SIZE, field))
    assert torch.allclose(out[:, :, :-2, 1:], images[:, :, 2:, :-1], atol=1e-5)
    assert (out[:, :, -2:] == 0).all()
    assert (out[:, :, :, 0] == 0).all()


def test_the_field_is_applied_before_the_affine():
    affine = torch.tensor([[[2.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0.5, 0]]], dtype=torch.float64)
    field = torch.full((1, 3, *SIZE), 0.5, dtype=torch.float64)
    points = map_grid(affine, SIZE, SIZE, field)
    assert points[0, 3, 4, 2].tolist() == [2 * 3.5 + 1, 4.5, 1.25]


def test_cell_centres_in_voxels():
    grid, size = (2, 4, 4), (8, 8, 4)
    points = cell_centres(grid, size, torch.zeros(1, dtype=torch.float64))
    assert points[0, 0, 0].tolist() == [1.5, 0.5, 0.0]
    cells = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in grid), indexing="ij"), -1)
    assert torch.allclose(voxel_to_cell(points, grid, size), cells)


def test_warping_a_coarse_map_equals_warping_the_image():
    """A ramp averaged to cells, read at cells of moved points, has the moved points' values."""
    size, grid = (16, 16, 16), (8, 8, 8)
    affine = torch.eye(3, 4, dtype=torch.float64)[None] * 0.8
    affine[..., 3] = 1.5
    points = map_grid(affine, grid, size)
    ramp = torch.arange(16, dtype=torch.float64).view(1, 1, 16, 1, 1).expand(1, 1, *size)
    read = warp(resize(ramp, grid), voxel_to_cell(points, grid, size))
    assert torch.allclose(read[0, 0], points[0, ..., 0], atol=1e-9)


def test_gradients_of_images_and_coordinates():
    images = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    where = torch.rand(1, 2, 2, 2, 3, dtype=torch.float64) * 2.4 + 0.3
    assert torch.autograd.gradcheck(warp, (images, where.requires_grad_()))


def test_coordinates_are_exact_under_autocast():
    affine, field = torch.eye(3, 4)[None] * 1.01, torch.randn(1, 3, 16, 16, 16)
    plain = map_grid(affine, (16, 16, 16), (16, 16, 16), field)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(map_grid(affine, (16, 16, 16), (16, 16, 16), field), plain)


def test_sampled_fields_are_smooth_and_have_the_requested_amplitude():
    fields = torch.stack([sample_displacement_field(make_rng(k, "field"), (12, 24, 24), 0.1) for k in range(40)])
    ends = fields[:, :, [0, 0, -1, -1], [0, -1, 0, -1], [0, -1, -1, 0]]
    assert ends.std((0, 2)).tolist() == pytest.approx([1.2, 2.4, 2.4], rel=0.25)
    # Knots lie 11/3 and 23/3 voxels apart; between them a step is at most their difference by their distance.
    steps = fields[:, 0].diff(dim=1).abs().amax()
    knots = fields[:, 0, [0, -1]].abs().amax()
    assert steps <= 2 * 4.5 * 1.2 / (11 / 3)
    assert knots > 0
