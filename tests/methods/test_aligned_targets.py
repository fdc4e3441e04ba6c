"""Dense targets of `dino-cva`: student and teacher are read at the same places of the volume."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from viewalign.methods.aligned_targets import AlignedTargets
from viewalign.utils.rng import make_rng
from viewalign.views import affines
from viewalign.views.alignment import find_points, view_points
from viewalign.views.batch import ViewBatch
from viewalign.views.layouts import MultiCropConfig, sample_multi_crop
from viewalign.views.sampling import ViewSamplingConfig

CROPS = MultiCropConfig(region=1.25, locals=3, local_size=(8, 8, 16))
SHAPE = (60, 62, 64)


def coordinate_views(to_volume, size):
    """Return views (V, B) whose three channels are the volume coordinates of their voxels."""
    points = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in size))
    views = affines.apply(to_volume, points).transpose(2, 3).unflatten(3, size).float()
    valid = torch.ones_like(views[:, :, :1], dtype=torch.bool)
    number = torch.arange(to_volume.shape[1])
    return ViewBatch(views, views, to_volume, valid, number, number, number)


def ramp_batch(spacing=(1.0, 1.0, 1.0)):
    """Rotated and scaled views of three volumes."""
    config = ViewSamplingConfig((16, 16, 24), p_rotation=1, rotation_degrees=40, p_scale=0.5)
    made = [sample_multi_crop(make_rng(k, "crops"), SHAPE, config, spacing, CROPS) for k in range(3)]
    batch = coordinate_views(torch.stack([one.to_volume for one in made], dim=1), config.size)
    local = coordinate_views(torch.stack([one.local.to_volume for one in made], dim=1), CROPS.local_size)
    return replace(batch, local=local)


def cells_of(views):
    """Average the coordinates over blocks of 4³: those of the blocks' centres."""
    return F.avg_pool3d(views.views.flatten(0, 1), 4)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)])
def test_coordinates_are_compared_with_themselves(spacing):
    batch = ramp_batch(spacing)
    features, local = cells_of(batch), cells_of(batch.local)
    out = AlignedTargets(1000).gather(batch, features, local, features, seed=0)
    assert out["aligned"].shape == (2, 3, 96, 3)
    assert out["aligned_local"].shape == (3, 3, 16, 3)
    small = out["aligned_local"].transpose(0, 1).flatten(1, 2)
    student = torch.cat([out["aligned"].flip(0), small.expand(2, *small.shape)], dim=2)
    used = out["aligned_valid"]
    assert used.shape == (2, 3, 96 + 48)
    assert (out["teacher_aligned"] - student)[used].abs().max() < 1e-4
    assert used[:, :, :96].float().mean() > 0.2
    assert used[:, :, 96:].float().mean() > 0.2
    assert not used.all()


def test_some_cells_are_sampled_for_every_view_anew():
    batch = ramp_batch()
    features, local = cells_of(batch), cells_of(batch.local)
    some = AlignedTargets(10).gather(batch, features, local, None, seed=0)
    assert set(some) == {"aligned", "aligned_local"}
    assert (some["aligned"].shape, some["aligned_local"].shape) == ((2, 3, 10, 3), (3, 3, 10, 3))
    for rows in some["aligned"].flatten(0, 1):
        assert len({tuple(row) for row in rows.tolist()}) == 10
    again = AlignedTargets(10).gather(batch, features, local, None, seed=0)
    assert torch.equal(again["aligned"], some["aligned"])
    other = AlignedTargets(10).gather(batch, features, local, None, seed=1)
    assert not torch.equal(other["aligned"], some["aligned"])
    part = AlignedTargets(10).gather(batch.part(1, 3), features.unflatten(0, (2, 3))[:, 1:].flatten(0, 1),
                                     local.unflatten(0, (3, 3))[:, 1:].flatten(0, 1), None, seed=0)  # fmt: skip
    assert torch.equal(part["aligned"], some["aligned"][:, 1:])


def test_points_that_count():
    """Only positions between cell centres, or all inside the view if these are too few; padding never does."""
    identity = affines.identity(1, 1)
    valid = torch.ones(1, 1, 1, 16, 16, 16, dtype=torch.bool)
    line = torch.tensor([-0.6, -0.4, 1.4, 1.6, 5.0, 8.0, 13.4, 13.6, 15.4, 15.6], dtype=torch.float64)
    points = torch.stack([line, torch.full_like(line, 8), torch.full_like(line, 8)], dim=-1)[None, None]

    def counting(chosen=points):
        used = find_points(chosen, identity, (16, 16, 16), (4, 4, 4), valid)[1][0, 0]
        return chosen[0, 0, used, 0].tolist()

    assert counting() == [1.6, 5.0, 8.0, 13.4]
    assert counting(points[:, :, [0, 1, 2, 3, 8, 9]]) == [-0.4, 1.4, 1.6, 15.4]
    valid[..., 8:, :, :] = False
    assert counting() == [1.6, 5.0, 8.0]


def test_cells_are_numbered_in_raster_order():
    to_volume = affines.identity(1)
    to_volume[0, :, 3] = torch.tensor([100.0, 200.0, 300.0])
    points = view_points(torch.tensor([[0, 1, 2, 6, 23]]), (4, 3, 2), to_volume, (8, 6, 8))
    expected = [[100.5, 200.5, 301.5], [100.5, 200.5, 305.5], [100.5, 202.5, 301.5], [102.5, 200.5, 301.5],
                [106.5, 204.5, 305.5]]  # fmt: skip
    assert points[0].tolist() == expected
