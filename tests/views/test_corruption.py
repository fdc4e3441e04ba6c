"""Corruptions of views: which voxels change, how, and whether labels describe it."""

import numpy as np
import pytest
import torch

from viewalign.utils.rng import make_rng, make_torch_generator
from viewalign.views import corruption, intensity
from viewalign.views.corruption import fuse, sample_cutouts, sample_fusion_labels


def view_of(size=(12, 10, 14)):
    """A z-scored view: half of it below zero, as no published distortion expects."""
    values = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    return values, torch.ones(1, *size, dtype=torch.bool)


def test_local_shuffle_permutes_voxels_within_boxes():
    view, _ = view_of()
    out = corruption.local_shuffle(view, (3, 5, 4), make_torch_generator("cpu", 0))
    assert not torch.equal(out, view)
    for d in range(0, 12, 3):
        for h in range(0, 10, 5):
            for w in range(0, 14, 4):
                box = (0, slice(d, d + 3), slice(h, h + 5), slice(w, w + 4))
                assert torch.equal(out[box].flatten().sort().values, view[box].flatten().sort().values)
    whole = corruption.local_shuffle(view, (1, 1, 1), make_torch_generator("cpu", 0))
    assert torch.equal(whole, view)


def test_nonlinear_intensity_uses_the_whole_range_of_z_scores():
    """The published map clamps everything outside [0, 1], which of z-scored data is more than half."""
    view, valid = view_of()
    low, high = intensity.valid_range(view, valid)
    for seed in range(20):
        xs, ys = corruption.bezier_curve(make_rng(seed))
        assert (np.diff(xs) >= 0).all()
        assert (xs[0], xs[-1]) == pytest.approx((0, 1))
        assert ((ys >= 0) & (ys <= 1)).all()
        out = corruption.nonlinear_intensity(view, low, high, make_rng(seed))
        expected = low + (high - low) * torch.from_numpy(
            np.interp(((view - low) / (high - low)).double().numpy(), xs, ys)
        )
        assert torch.allclose(out.double(), expected, atol=0.05)
        assert len(out.unique()) > 0.9 * len(view.unique())


@pytest.mark.parametrize(("outpaint", "low", "high"), [(False, 0.001, 0.25), (True, 0.3, 0.95)])
def test_painted_fraction(outpaint, low, high):
    fractions = [
        float(corruption.sample_painting(make_rng(seed), (24, 24, 24), outpaint).float().mean()) for seed in range(50)
    ]
    assert low < np.mean(fractions) < high
    assert max(fractions) < 1


def test_corruption_is_reproducible_and_keeps_padding():
    view, valid = view_of()
    valid[..., 9:] = False
    view = view * valid
    always = corruption.CorruptionConfig(1, 1, 1, 0.5)
    made = [corruption.corrupt(view, valid, always, make_rng(5), make_torch_generator("cpu", 5)) for _ in range(2)]
    assert torch.equal(*made)
    assert (made[0][~valid] == 0).all()
    assert (made[0][valid] != view[valid]).float().mean() > 0.9
    nothing = corruption.CorruptionConfig(0, 0, 0)
    assert torch.equal(corruption.corrupt(view, valid, nothing, make_rng(5), make_torch_generator("cpu", 5)), view)


def test_fused_voxels_are_mixed_by_their_labels():
    labels = sample_fusion_labels(make_rng(0, "fusion"), (16, 16, 16))[None]
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4}
    out = fuse(torch.ones(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16), labels)
    assert torch.equal(out[:, 0] * 4, labels.float())
    front, back = torch.randn(2, 1, 1, 16, 16, 16)
    mixed = fuse(front, back, labels)[0, 0]
    for label in range(5):
        where = labels[0] == label
        share = label / 4
        assert torch.allclose(mixed[where], share * front[0, 0][where] + (1 - share) * back[0, 0][where])


def test_fusion_boxes_have_the_requested_size():
    for seed in range(20):
        labels = sample_fusion_labels(make_rng(seed), (32, 32, 32), blocks=(1, 2), largest=0.5)
        if not labels.any():
            continue  # the box has the share 0
        where = np.argwhere(labels.numpy() > 0)
        sides = where.max(0) - where.min(0) + 1
        assert (sides >= 8).all()
        assert (sides <= 16).all()
        assert len(where) == sides.prod()


def test_fusion_boxes_have_each_share_alike():
    drawn = [int(sample_fusion_labels(make_rng(seed), (8, 8, 8), blocks=(1, 2)).max()) for seed in range(500)]
    assert all(60 <= drawn.count(label) <= 140 for label in range(5))  # 100 ± 9


def test_cutouts_cover_at_most_the_requested_fraction():
    fractions = [float(sample_cutouts(make_rng(seed), (16, 16, 16), 0.3, 0.25).float().mean()) for seed in range(200)]
    assert max(fractions) <= 0.3
    assert 0.1 < np.mean(fractions) < 0.17
