import numpy as np
import pytest
import torch

from viewalign.utils.rng import make_rng
from viewalign.views import affines
from viewalign.views.batch import build_views
from viewalign.views.layouts import box_overlaps, sample_grid
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

PLAIN = ViewSamplingConfig((4, 4, 4), mirror=True, p_rotation=0, p_scale=0)


def voxels_of(affine, size):
    """The set of volume voxels that a view shows."""
    points = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in size))
    return {tuple(row) for row in affines.apply(affine, points).round().long().tolist()}


@pytest.mark.parametrize("seed", range(6))
def test_overlaps_equal_counted_voxels(seed):
    sampled = sample_grid(make_rng(seed, "grid"), (20, 24, 22), PLAIN, grid=(1, 3, 2), targets=3)
    assert sampled.to_volume.shape == (9, 3, 4)
    found = box_overlaps(sampled.to_volume[:, None], (4, 4, 4), 3)[0]
    shown = [voxels_of(one, (4, 4, 4)) for one in sampled.to_volume]
    for target in range(3):
        for cell in range(6):
            counted = len(shown[target] & shown[3 + cell]) / 64
            assert float(found[target, cell]) == pytest.approx(counted)
    # The grid tiles the region of the targets, so that the overlaps of a target sum to 1.
    assert found.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert len(set.union(*shown[3:])) == 6 * 64


def test_overlaps_in_a_rotated_and_scaled_frame():
    turned = ViewSamplingConfig((6, 6, 6), p_rotation=1, p_scale=1)
    sampled = sample_grid(make_rng(3, "grid"), (40, 40, 40), turned, grid=(2, 2, 1), targets=2)
    found = box_overlaps(sampled.to_volume[:, None], (6, 6, 6), 2)[0]
    assert found.sum(1).tolist() == pytest.approx([1.0] * 2)


def test_grid_views_contain_the_voxels_of_their_affines():
    array = np.random.default_rng(0).normal(size=(20, 24, 22)).astype(np.float32)
    alone = np.zeros(1, dtype=np.int64)

    def sampler(*args):
        return sample_grid(*args, grid=(1, 2, 2), targets=1)

    sample = SampleReader(ArraySource(array), alone, alone, PLAIN, 1, 0, sampler=sampler)[0]
    batch = build_views([sample], (4, 4, 4), None)
    assert batch.count == (5, 1)
    points = torch.cartesian_prod(*(torch.arange(4, dtype=torch.float64),) * 3)
    for view in range(5):
        d, h, w = affines.apply(batch.to_volume[view, 0], points).round().long().T
        assert torch.equal(batch.views[view, 0, 0].flatten(), torch.from_numpy(array)[d, h, w])
