"""Layout of global and local crops, each with its own flip, rotation and scale."""

import numpy as np
import pytest
import torch

from viewalign.utils.rng import make_rng
from viewalign.views import affines
from viewalign.views.batch import build_views
from viewalign.views.layouts import MultiCropConfig, sample_multi_crop
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

SIZE, LOCAL, SHAPE = (16, 16, 16), (8, 4, 8), (40, 44, 42)
CROPS = MultiCropConfig(region=1.5, extent=(0.75, 1.25), locals=5, local_size=LOCAL, local_extent=(0.5, 1.0))
PLAIN = ViewSamplingConfig(SIZE, p_rotation=0, p_scale=0)
TURNED = ViewSamplingConfig(SIZE, p_rotation=1, p_scale=0)


def sample(seed, config=PLAIN, crops=CROPS, spacing=(1.0, 1.0, 1.0)):
    return sample_multi_crop(make_rng(seed, "crops"), SHAPE, config, spacing, crops)


def corners(size):
    ends = torch.tensor([[-0.5, n - 0.5] for n in size], dtype=torch.float64)
    return torch.cartesian_prod(*ends)


@pytest.mark.parametrize("seed", range(20))
def test_crops_lie_inside_what_contains_them(seed):
    sampled = sample(seed)
    assert (sampled.to_volume.shape, sampled.local.to_volume.shape) == ((2, 3, 4), (5, 3, 4))
    for k, one in enumerate(sampled.local.to_volume):
        inside = affines.apply(affines.compose(affines.invert(sampled.to_volume[k % 2]), one), corners(LOCAL))
        assert inside.min() >= -0.5 - 1e-9
        assert inside.max() <= 15.5 + 1e-9
    both = torch.cat([affines.apply(one, corners(SIZE)) for one in sampled.to_volume])
    assert ((both.amax(0) - both.amin(0)) <= 24 + 1e-9).all()
    assert both.min() >= -0.5 - 1e-9
    assert (both <= torch.tensor(SHAPE) - 0.5 + 1e-9).all()


def test_every_crop_has_its_own_scale_and_rotation():
    frames = [torch.cat([made.to_volume, made.local.to_volume])[:, :, :3] for made in map(sample, range(30))]
    scales = torch.stack([torch.linalg.det(made).abs() ** (1 / 3) for made in frames])
    for columns, (low, high) in ((scales[:, :2], CROPS.extent), (scales[:, 2:], CROPS.local_extent)):
        assert columns.min() >= low - 1e-9
        assert columns.max() <= high + 1e-9
        assert columns.std() > 0.1
    turned = sample(3, TURNED)
    directions = [one[:, :3] / torch.linalg.det(one[:, :3]).abs() ** (1 / 3) for one in turned.to_volume]
    directions += [one[:, :3] / torch.linalg.det(one[:, :3]).abs() ** (1 / 3) for one in turned.local.to_volume]
    for number, one in enumerate(directions):
        assert torch.allclose(one @ one.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
        assert all((one.abs() - other.abs()).abs().max() > 1e-3 for other in directions[:number])


def test_the_region_has_the_scale_of_views():
    scaled = ViewSamplingConfig(SIZE, p_rotation=0, p_scale=1, scale=(1.4, 1.4))
    frames = torch.stack([sample(seed, scaled).to_volume[:, :, :3] for seed in range(30)])
    scales = torch.linalg.det(frames).abs() ** (1 / 3)
    assert 1.4 * 0.75 - 1e-9 <= scales.min() < 1.4 * 0.85
    assert 1.4 * 1.15 < scales.max() <= 1.4 * 1.25 + 1e-9


def test_views_contain_the_voxels_of_their_affines():
    """Resampling preserves a linear ramp, so that its values are the coordinates of the voxels."""
    volume = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij"))
    alone = np.zeros(1, dtype=np.int64)

    def sampler(*args):
        return sample_multi_crop(*args, crops=CROPS)

    made = SampleReader(ArraySource(volume), alone, alone, TURNED, 1, 0, sampler=sampler)[0]
    batch = build_views([made], SIZE, None)
    assert (batch.count, batch.local.count, batch.local.size) == ((2, 1), (5, 1), LOCAL)
    for views in (batch, batch.local):
        points = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in views.size))
        for view in range(views.count[0]):
            where = affines.apply(views.to_volume[view, 0], points)
            counts = views.valid[view, 0].flatten()
            seen = views.views[view, 0].flatten(1).T.double()
            assert (seen - where)[counts].abs().max() < 1e-4
            assert counts.double().mean() > 0.6
