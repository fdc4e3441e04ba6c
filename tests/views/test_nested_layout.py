"""Layout of large and local views, checked by counting voxels."""

import numpy as np
import pytest
import torch

from viewalign.utils.rng import make_rng
from viewalign.views import affines
from viewalign.views.batch import build_views
from viewalign.views.layouts import Box, NestedViewConfig, iou, sample_nested
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

PLAIN = ViewSamplingConfig((16, 16, 16), p_rotation=0, p_scale=0)
NESTING = NestedViewConfig(local_size=(8, 8, 8), locals=5)
SHAPE = (30, 28, 32)


def voxels(to_volume, size):
    """Return which voxels of a volume a view's box covers; boxes are whole voxels of it."""
    ends = torch.stack([torch.full((3,), -0.5, dtype=torch.float64), torch.tensor(size, dtype=torch.float64) - 0.5])
    corners = affines.apply(to_volume, ends) + 0.5
    assert torch.allclose(corners, corners.round(), atol=1e-9)
    low, high = corners.amin(0).round().int().tolist(), corners.amax(0).round().int().tolist()
    covered = np.zeros(SHAPE, dtype=bool)
    assert all(0 <= a < b <= n for a, b, n in zip(low, high, SHAPE, strict=True))
    covered[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return covered


@pytest.mark.parametrize("seed", range(40))
def test_overlap_and_nesting_by_counting_voxels(seed):
    sampled = sample_nested(make_rng(seed, "nested"), SHAPE, PLAIN, nesting=NESTING)
    assert (sampled.to_volume.shape, sampled.local.to_volume.shape) == ((2, 3, 4), (5, 3, 4))
    first, second = (voxels(one, PLAIN.size) for one in sampled.to_volume)
    assert (first & second).sum() / (first | second).sum() >= 0.3
    assert sampled.overlap == pytest.approx((first & second).sum() / first.sum(), abs=0.08)
    for k, one in enumerate(sampled.local.to_volume):
        small = voxels(one, NESTING.local_size)
        assert not (small & ~(first, second)[k % 2]).any()
        assert 4**3 <= small.sum() <= 8**3
    for large in (first, second):
        assert 12**3 <= large.sum() <= 20**3


def test_rotated_and_scaled_views_are_nested():
    turned = ViewSamplingConfig((16, 16, 16), p_rotation=1, p_scale=1, rotation_degrees=30)
    sampled = sample_nested(make_rng(1, "nested"), (50, 50, 50), turned, (1.0, 1.0, 2.0), NESTING)
    for k, one in enumerate(sampled.local.to_volume):
        within = affines.compose(affines.invert(sampled.to_volume[k % 2]), one)
        assert torch.allclose(within[:, :3], torch.diag(within[:, :3].diagonal()), atol=1e-9)
        corners = affines.apply(within, torch.tensor([[-0.5] * 3, [7.5] * 3], dtype=torch.float64))
        assert corners.min() >= -0.5 - 1e-9
        assert corners.max() <= 15.5 + 1e-9


def test_each_view_is_flipped_by_itself():
    signs = {}
    for seed in range(60):
        sampled = sample_nested(make_rng(seed, "nested"), SHAPE, PLAIN, nesting=NESTING)
        for k, one in enumerate([*sampled.to_volume, *sampled.local.to_volume]):
            signs.setdefault(k, []).append((one[:, :3].diagonal() < 0).tolist())
    assert all(0.3 < np.mean(one) < 0.7 for one in signs.values())
    assert signs[0] != signs[1]
    unmirrored = ViewSamplingConfig((16, 16, 16), mirror=False, p_rotation=0)
    still = sample_nested(make_rng(0, "nested"), SHAPE, unmirrored, nesting=NESTING)
    assert (still.to_volume[:, :, :3].diagonal(dim1=1, dim2=2) > 0).all()


def test_boxes_are_equal_if_no_second_one_is_found():
    strict = NestedViewConfig(min_iou=1.0, local_size=(8, 8, 8))
    sampled = sample_nested(make_rng(0, "nested"), SHAPE, PLAIN, nesting=strict)
    first, second = (voxels(one, PLAIN.size) for one in sampled.to_volume)
    assert (first == second).all()


def test_iou_of_known_boxes():
    a, b = Box(np.array([0, 0, 0]), np.array([4, 4, 4])), Box(np.array([2, 0, 0]), np.array([4, 4, 4]))
    assert iou(a, b) == pytest.approx(32 / 96)
    assert iou(a, Box(np.array([4, 0, 0]), np.array([4, 4, 4]))) == 0
    assert iou(a, a) == 1


def test_views_contain_the_voxels_of_their_affines():
    """Resampling preserves a linear ramp, so that its values are the coordinates of the voxels."""
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in SHAPE), indexing="ij")
    alone = np.zeros(1, dtype=np.int64)

    def sampler(*args):
        return sample_nested(*args, nesting=NESTING)

    for axis, ramp in enumerate(axes):
        sample = SampleReader(ArraySource(ramp), alone, alone, PLAIN, 1, 0, sampler=sampler)[0]
        batch = build_views([sample], PLAIN.size, None)
        assert (batch.count, batch.local.count, batch.local.size) == ((2, 1), (5, 1), (8, 8, 8))
        for views in (batch, batch.local):
            points = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in views.size))
            for view in range(views.count[0]):
                where = affines.apply(views.to_volume[view, 0], points)[:, axis]
                counts = views.valid[view, 0].flatten()
                seen = views.views[view, 0].flatten().double()
                assert (seen - where)[counts].abs().max() < 1e-4
                assert counts.double().mean() > 0.6
