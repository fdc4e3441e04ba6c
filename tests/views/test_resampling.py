"""Resampling against a plain reference: trilinear interpolation voxel by voxel."""

import itertools

import numpy as np
import pytest
import torch

from viewalign.views import affines, resampling

SIZE = (5, 6, 4)
SHAPE = (9, 8, 10)


def plain_resample(volume, to_volume, size):
    """Interpolate one voxel at a time; outside the volume is 0."""
    out = np.zeros(size)
    for index in itertools.product(*(range(n) for n in size)):
        where = to_volume[:, :3] @ np.array(index) + to_volume[:, 3]
        low = np.floor(where).astype(int)
        for corner in itertools.product((0, 1), repeat=3):
            at = low + corner
            if all(0 <= a < n for a, n in zip(at, volume.shape, strict=True)):
                out[index] += volume[tuple(at)] * np.prod(np.where(corner, where - low, 1 - (where - low)))
    return out


def rotation(degrees):
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
    "rotation": (rotation(30), (4, 0.5, 2)),
    "rotation past the border": (rotation(75) * 1.4, (3.3, -2.2, 1.5)),
}


@pytest.mark.parametrize("case", CASES)
def test_views_and_validity_agree_with_a_reference(case):
    linear, shift = CASES[case]
    to_volume = np.column_stack([linear, np.array(shift, float)])
    volume = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    affine = torch.from_numpy(to_volume)
    view = resampling.resample(torch.from_numpy(volume)[None], affine, SIZE)[0].numpy()
    assert view == pytest.approx(plain_resample(volume, to_volume, SIZE), abs=2e-5)
    where = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij"), -1) @ linear.T + shift
    wanted = ((where >= -1e-6) & (where <= np.array(SHAPE) - 1 + 1e-6)).all(-1)
    seen = resampling.inside(SHAPE, affine, SIZE)
    assert torch.equal(seen, torch.from_numpy(wanted))
    assert resampling.contains(SHAPE, affine, SIZE) == wanted.all()


def test_diagonal_affines():
    assert affines.is_diagonal(torch.tensor([[2.0, 0, 0, 1], [0, -1, 0, 2], [0, 0, 0.5, 3]]))
    assert not affines.is_diagonal(torch.tensor([[2.0, 0, 1e-9, 1], [0, 1, 0, 2], [0, 0, 1, 3]]))
