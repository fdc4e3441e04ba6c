"""Each way of cutting a view against a slow, plain reference: trilinear interpolation voxel by voxel."""

import itertools

import numpy as np
import pytest
import torch

from viewalign.views import affines, resampling

SIZE = (5, 6, 4)
SHAPE = (9, 8, 10)


def plain_cut(volume, to_volume, size):
    """Interpolate one voxel at a time; what lies outside the volume is 0."""
    out = np.zeros(size)
    for index in itertools.product(*(range(n) for n in size)):
        where = to_volume[:, :3] @ np.array(index) + to_volume[:, 3]
        low = np.floor(where).astype(int)
        for corner in itertools.product((0, 1), repeat=3):
            at = low + corner
            if all(0 <= a < n for a, n in zip(at, volume.shape, strict=True)):
                out[index] += volume[tuple(at)] * np.prod(np.where(corner, where - low, 1 - (where - low)))
    return out


def turned(degrees):
    a = np.radians(degrees)
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])


CASES = {
    "slice": (np.eye(3), (2, 1, 3)),
    "mirrored": (np.diag([-1.0, 1, -1]), (6, 1, 8)),
    "half a voxel": (np.eye(3), (2.5, 1.25, 3)),
    "scaled": (np.diag([1.3, 0.7, 1.1]), (1.2, 0.4, 2.5)),
    "scaled and mirrored": (np.diag([-1.3, 0.7, -1.1]), (7.7, 0.4, 6.5)),
    "scaled past the border": (np.diag([1.9, 1.9, 1.9]), (-2.3, -1.6, 4.5)),
    "scaled outside": (np.diag([1.5, 1.5, 1.5]), (40.0, 0, 0)),
    "turned": (turned(30), (4, 0.5, 2)),
    "turned past the border": (turned(75) * 1.4, (3.3, -2.2, 1.5)),
}


@pytest.mark.parametrize("case", CASES)
def test_views_and_their_validity_by_hand(case):
    linear, shift = CASES[case]
    to_volume = np.column_stack([linear, np.array(shift, float)])
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    affine = torch.from_numpy(to_volume)
    view = resampling.resample(torch.from_numpy(volume)[None], affine, SIZE)[0].numpy()
    assert view == pytest.approx(plain_cut(volume, to_volume, SIZE), abs=2e-5)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij"), -1) @ linear.T + shift
    wanted = ((places >= -1e-6) & (places <= np.array(SHAPE) - 1 + 1e-6)).all(-1)
    seen = resampling.inside(SHAPE, affine, SIZE)
    assert torch.equal(seen, torch.from_numpy(wanted))
    assert resampling.contains(SHAPE, affine, SIZE) == wanted.all()


def test_which_maps_mix_axes():
    assert affines.is_diagonal(torch.tensor([[2.0, 0, 0, 1], [0, -1, 0, 2], [0, 0, 0.5, 3]]))
    assert not affines.is_diagonal(torch.tensor([[2.0, 0, 1e-9, 1], [0, 1, 0, 2], [0, 0, 1, 3]]))
