import numpy as np
import pytest
import torch

from viewalign.utils.rng import make_rng
from viewalign.views import affines, lattice
from viewalign.views.sampling import ViewSamplingConfig, sample_pair

PLAIN = ViewSamplingConfig((32, 32, 32), p_rotation=0, p_scale=0)


def pairs(config, shape, count=200, **options):
    return [sample_pair(make_rng(0, i, "test"), shape, config, **options) for i in range(count)]


def voxels(to_volume, size):
    """Return the set of volume voxels that an integral view covers, as an array of booleans over a big box."""
    axes = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in size))
    return {tuple(row) for row in affines.apply(to_volume, axes).long().tolist()}


def test_overlap_equals_counted_voxels():
    for pair in pairs(ViewSamplingConfig((12, 10, 8), p_rotation=0, p_scale=0), (24, 24, 24), 20):
        a, b = (voxels(one, (12, 10, 8)) for one in pair.to_volume)
        assert pair.overlap == pytest.approx(len(a & b) / len(a))


def test_overlap_is_in_its_range_up_to_rounding():
    overlaps = [pair.overlap for pair in pairs(PLAIN, (64, 64, 64))]
    assert min(overlaps) >= 0.4 * (1 - 0.1)
    assert max(overlaps) <= 0.8 * (1 + 0.1)
    assert np.mean(overlaps) == pytest.approx(0.6, abs=0.03)


def test_shifts_have_both_signs_on_each_axis():
    shifts = np.stack(
        [
            (affines.compose(affines.invert(p.to_volume[0]), p.to_volume[1]))[:, 3].numpy()
            for p in pairs(PLAIN, (64, 64, 64))
        ]
    )
    assert ((shifts > 0).mean(0) > 0.3).all()
    assert ((shifts < 0).mean(0) > 0.3).all()


@pytest.mark.slow
def test_shift_is_smaller_in_small_volumes():
    for pair in pairs(PLAIN, (34, 32, 64), 8):
        start = [affines.apply(one, torch.tensor([[0.0, 0, 0], [31, 31, 31]])) for one in pair.to_volume]
        for corners in start:
            assert corners.amin() >= 0
            assert (corners.amax(0) <= torch.tensor([33, 31, 63])).all()
        a, b = (voxels(one, (32, 32, 32)) for one in pair.to_volume)
        assert pair.overlap == pytest.approx(len(a & b) / len(a))


def test_a_view_contains_a_smaller_volume():
    for pair in pairs(PLAIN, (20, 40, 25), 50):
        for one in pair.to_volume:
            corners = affines.apply(affines.invert(one), torch.tensor([[0.0, 0, 0], [19, 0, 24]]))
            assert (corners[:, [0, 2]] >= 0).all()
            assert (corners[:, [0, 2]] <= 31).all()


def test_flips_and_scales_cover_their_range():
    config = ViewSamplingConfig((32, 32, 32), p_rotation=1, p_scale=1)
    frames = torch.stack([pair.to_volume[0, :, :3] for pair in pairs(config, (80, 80, 80))])
    scale = torch.linalg.det(frames).abs() ** (1 / 3)
    assert 0.7 <= scale.min() < 0.75
    assert 1.3 < scale.max() <= 1.4
    flat = torch.stack([pair.to_volume[0, :, :3].diagonal() for pair in pairs(PLAIN, (80, 80, 80))])
    assert len({tuple(row) for row in flat.sign().tolist()}) == 8


def test_rotation_is_rigid_in_millimetres():
    spacing = (1.0, 0.5, 3.0)
    config = ViewSamplingConfig((16, 16, 16), p_rotation=1, p_scale=0)
    millimetres = torch.diag(torch.tensor(spacing, dtype=torch.float64))
    for pair in pairs(config, (60, 60, 60), 20, spacing=spacing):
        rigid = millimetres @ pair.to_volume[0, :, :3] @ torch.linalg.inv(millimetres)
        assert torch.allclose(rigid @ rigid.T, torch.eye(3, dtype=torch.float64), atol=1e-9)


def test_independent_views_have_different_frames():
    config = ViewSamplingConfig((24, 24, 24), p_rotation=1, p_scale=1, independent=True)
    sampled = pairs(config, (60, 60, 60), 40)
    differ = [not bool(affines.same_frame(p.to_volume[0], p.to_volume[1])) for p in sampled]
    assert np.mean(differ) > 0.9
    rng = np.random.default_rng(0)
    for pair in sampled[:10]:
        points = torch.from_numpy(rng.uniform(-0.5, 23.5, (40_000, 3)))
        inside = lattice.inside(affines.apply(pair.to_volume[:1], points[None]), pair.to_volume[1:], (24, 24, 24))
        assert pair.overlap == pytest.approx(float(inside.double().mean()), abs=0.02)


def test_equal_keys_give_equal_pairs():
    a = sample_pair(make_rng(7, 3, "x"), (50, 50, 50), PLAIN)
    b = sample_pair(make_rng(7, 3, "x"), (50, 50, 50), PLAIN)
    c = sample_pair(make_rng(7, 4, "x"), (50, 50, 50), PLAIN)
    assert torch.equal(a.to_volume, b.to_volume)
    assert not torch.equal(a.to_volume, c.to_volume)
