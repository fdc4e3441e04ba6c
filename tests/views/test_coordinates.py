"""Alignment error: coordinates in place of intensities must be equal at corresponding positions of two views.

The channels of the volume are its voxel coordinates. Two views are sampled from it and read at the shared lattice; the
difference is the alignment error in voxels. The code released with the paper has a mean error of 13 voxels.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from viewalign.utils.pooling import valid_fraction
from viewalign.views import alignment, feature_grids, lattice, resampling
from viewalign.views.batch import sample_views
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

LIMIT = 1e-3
DRAWS = 6


def ramp(*shape):
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))


def fully_valid(pair, grid):
    """Return, per cell of either view, whether no padded voxel touches it or a neighbour of it."""
    fraction = valid_fraction(pair.valid.flatten(0, 1), grid)
    return (F.avg_pool3d(fraction, 3, 1, 1, count_include_pad=False) > 1 - 1e-6).float()


def error_of(pair, pool=1):
    """Return the largest alignment error in voxels over lattice cells that touch no padding, and how many these are."""
    size = pair.size
    maps = F.avg_pool3d(pair.views.flatten(0, 1), pool) if pool > 1 else pair.views.flatten(0, 1)
    whole = fully_valid(pair, tuple(maps.shape[2:]))
    found = alignment.find_correspondences(
        pair.to_volume[0], pair.to_volume[1], size, [tuple(maps.shape[2:])], pair.valid
    )
    values = found.read([torch.cat([maps, whole], dim=1)])
    counts = (found.weight > 0) & (values[..., 3] > 1 - 1e-6).all(0)
    error = (values[0, ..., :3] - values[1, ..., :3]).abs().amax(-1)
    return float((error * counts).max()), int(counts.sum())


def unpadded_pair(shape, config):
    """Draw until no voxel of either view is padded, so that whole stages can be compared."""
    pairs = (sample_views(ramp(*shape), config.size, seed, config) for seed in range(50))
    return next(pair for pair in pairs if pair.valid.all() and pair.to_volume[0, 0, 0, 1] != 0)


CASES = {
    "axis-aligned": ((112, 112, 112), ViewSamplingConfig((64, 64, 64), mirror=False, p_rotation=0, p_scale=0)),
    "mirrored": ((112, 112, 112), ViewSamplingConfig((64, 64, 64), p_rotation=0, p_scale=0)),
    "rotated": ((112, 112, 112), ViewSamplingConfig((64, 64, 64), p_rotation=1, p_scale=0)),
    "scaled": ((112, 112, 112), ViewSamplingConfig((64, 64, 64), p_rotation=0, p_scale=1)),
    "all of it": ((102, 102, 102), ViewSamplingConfig((64, 64, 64), p_rotation=1, p_scale=1)),
    "anisotropic": ((154, 116, 89), ViewSamplingConfig((96, 96, 32), p_rotation=1, p_scale=1)),
    "odd": ((75, 71, 93), ViewSamplingConfig((45, 37, 51), p_rotation=1, p_scale=1)),
    "little room": ((76, 76, 76), ViewSamplingConfig((64, 64, 64), p_rotation=0, p_scale=0)),
    "padded": ((40, 70, 35), ViewSamplingConfig((48, 48, 48), p_rotation=1, p_scale=1)),
    "independent": ((112, 112, 112), ViewSamplingConfig((64, 64, 64), p_rotation=1, p_scale=1, independent=True)),
    "independent flips": ((112, 100, 90), ViewSamplingConfig((64, 64, 64), p_rotation=0, p_scale=0, independent=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_corresponding_positions_have_equal_coordinates(case):
    shape, config = CASES[case]
    field, compared = ramp(*shape), 0
    for seed in range(DRAWS):
        pair = sample_views(
            field, config.size, seed, config, spacing=(1.0, 1.0, 3.0) if case == "anisotropic" else (1, 1, 1)
        )
        error, cells = error_of(pair)
        compared += cells
        assert error <= LIMIT, f"{case}, seed {seed}: {error:.4f} voxels"
    assert compared > 50 * DRAWS, "hardly anything was compared"


POOLED = [(case, pool) for case in ("mirrored", "rotated", "scaled", "anisotropic", "independent") for pool in (4, 8)]


@pytest.mark.parametrize(("case", "pool"), [*POOLED, ("padded", 4)])
def test_pooled_features_keep_their_positions(case, pool):
    shape, config = CASES[case]
    field, compared = ramp(*shape), 0
    for seed in range(DRAWS):
        error, cells = error_of(sample_views(field, config.size, seed, config), pool)
        compared += cells
        assert error <= LIMIT, f"{case}, seed {seed}: {error:.4f} voxels"
    assert compared > 0


@pytest.mark.parametrize("limit", [16, 8])
def test_stages_keep_their_positions_on_the_common_grid(limit):
    """`project_first`: stages from 64³ down to 4³ come to one grid, finer ones averaged, coarser interpolated."""
    pair = unpadded_pair((140, 140, 140), CASES["all of it"][1])
    stages = [F.avg_pool3d(pair.views.flatten(0, 1), 2**k) for k in range(5)]
    grid = feature_grids.common_grid([tuple(stage.shape[2:]) for stage in stages], limit)
    assert grid == (limit,) * 3
    maps = torch.cat([feature_grids.resize(stage, grid) for stage in stages], dim=1)
    found = alignment.find_correspondences(pair.to_volume[0], pair.to_volume[1], pair.size, [grid], pair.valid)
    a, b = found.read([maps])
    counts = found.weight > 0
    assert counts.sum() > 100
    assert float(((a - b).abs().amax(-1) * counts).max()) <= LIMIT


def test_stages_keep_their_positions_on_their_own_grids():
    """`align_first`: each stage is read at the lattice points; the coarsest continue linearly past their border."""
    for seed in range(DRAWS):
        pair = sample_views(ramp(112, 112, 112), (64, 64, 64), seed, CASES["mirrored"][1])
        stages = [F.avg_pool3d(pair.views.flatten(0, 1), 2**k) for k in range(6)]
        sizes = [tuple(stage.shape[2:]) for stage in stages]
        assert sizes[-1] == (2, 2, 2)
        found = alignment.find_correspondences(pair.to_volume[0], pair.to_volume[1], pair.size, sizes, pair.valid)
        a, b = found.read(stages)
        counts = found.weight > 0
        assert counts.float().mean() >= 0.5
        assert float(((a - b).abs().amax(-1) * counts).max()) <= LIMIT


def test_aligned_values_are_those_of_the_lattice_points():
    """Both sides could agree on a wrong place; so the place itself is checked against the lattice."""
    pair = unpadded_pair((140, 140, 140), CASES["all of it"][1])
    a, _, weight = alignment.align(
        pair.views[0], pair.views[1], pair.to_volume[0], pair.to_volume[1], pair.size, cells=7
    )
    points = lattice.lattice_points(pair.to_volume[0], pair.to_volume[1], pair.size, (7, 7, 7), 2)
    cells = points.view(7, 2, 7, 2, 7, 2, 3).mean((1, 3, 5)).view(1, 343, 3)
    assert (weight == 1).all()
    assert float((a - cells).abs().max()) <= LIMIT


def test_views_contain_the_voxels_of_their_affines():
    """Every valid voxel of a view holds the volume coordinate that the affine sends it to."""
    for seed in range(DRAWS):
        pair = sample_views(
            ramp(60, 55, 70), (40, 36, 45), seed, ViewSamplingConfig((40, 36, 45), p_rotation=0.5, p_scale=0.5)
        )
        for view, valid, to_volume in zip(pair.views[:, 0], pair.valid[:, 0], pair.to_volume[:, 0], strict=True):
            index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in pair.size), indexing="ij"), -1).double()
            where = index @ to_volume[:, :3].T + to_volume[:, 3]
            assert valid.any()
            assert float(((view.movedim(0, -1) - where).abs().amax(-1) * valid[0]).max()) <= LIMIT


def test_integral_affines_are_slices():
    volume = torch.randn(2, 20, 21, 22)
    to_volume = torch.tensor([[1.0, 0, 0, 3], [0, -1, 0, 15], [0, 0, 1, 4]], dtype=torch.float64)
    view = resampling.resample(volume, to_volume, (8, 9, 10))
    assert torch.equal(view, volume[:, 3:11, 7:16, 4:14].flip(2))
    almost = to_volume.clone()
    almost[0, 3] += 1e-9
    assert torch.allclose(resampling.resample(volume, almost, (8, 9, 10)), view, atol=1e-4)


def test_views_of_the_enclosing_box_equal_views_of_the_volume():
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(1, 60, 58, 62)).astype(np.float32)
    config = ViewSamplingConfig((24, 24, 24), p_rotation=1, p_scale=1)
    pair = sample_views(volume, config.size, 1, config)
    for view, to_volume in zip(pair.views[:, 0], pair.to_volume[:, 0], strict=True):
        whole = resampling.resample(torch.from_numpy(volume), to_volume, config.size)
        assert torch.allclose(view, whole * resampling.inside((60, 58, 62), to_volume, config.size), atol=1e-4)


def test_only_the_box_of_the_views_is_read():
    source = ArraySource(np.zeros((100, 100, 100)))
    reader = SampleReader(
        source, np.zeros(1, int), np.zeros(1, int), ViewSamplingConfig((32, 32, 32), p_rotation=0, p_scale=0), 1, 0
    )
    for index in range(20):
        sample = reader[index]
        assert all(32 <= n <= 64 for n in sample.crop.shape[1:])
