import numpy as np
import pytest
import torch

from viewalign.views import affines, lattice
from viewalign.views.sampling import ViewSamplingConfig, sample_affine

SIZE = (10, 12, 14)


def shifted(*by):
    out = affines.identity(1)
    out[0, :, 3] = torch.tensor(by, dtype=torch.float64)
    return out


def rotated(degrees):
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    out = affines.identity(1)
    out[0, 1, 1] = out[0, 2, 2] = angle.cos()
    out[0, 1, 2], out[0, 2, 1] = -angle.sin(), angle.sin()
    return out


def test_common_box_of_shifted_views():
    low, high = lattice.common_box(affines.identity(1), shifted(3, -4, 0), SIZE)
    assert torch.allclose(low, torch.tensor([[2.5, -0.5, -0.5]]).double())
    assert torch.allclose(high, torch.tensor([[9.5, 7.5, 13.5]]).double())


def test_polyhedron_box_agrees_for_shifted_views():
    a, b = affines.identity(1), shifted(3, -4, 2)
    low, high = lattice.common_box(a, b, SIZE)
    general = lattice._polyhedron_box(affines.invert(affines.compose(affines.invert(a), b)), torch.tensor(SIZE) - 0.5)
    assert torch.allclose(low, general[0])
    assert torch.allclose(high, general[1])


def test_common_box_of_rotated_views_is_tight():
    centre = torch.tensor([4.5, 5.5, 6.5], dtype=torch.float64)
    turn = rotated(30.0)
    turn[0, :, 3] = centre - turn[0, :, :3] @ centre
    low, high = lattice.common_box(affines.identity(1), turn, SIZE)
    axes = [torch.linspace(-0.5, n - 0.5, 61, dtype=torch.float64) for n in SIZE]
    points = torch.cartesian_prod(*axes)[None]
    shared = points[0][lattice.inside(points, turn, SIZE)[0]]
    assert (shared >= low - 1e-6).all()
    assert (shared <= high + 1e-6).all()
    assert torch.allclose(shared.amin(0), low[0], atol=0.3)
    assert torch.allclose(shared.amax(0), high[0], atol=0.3)


def test_disjoint_views_have_an_empty_box():
    far = rotated(30.0)
    far[0, :, 3] = 1000.0
    low, high = lattice.common_box(affines.identity(1), far, SIZE)
    assert torch.equal(low, torch.zeros(1, 3).double())
    assert torch.equal(high, torch.zeros(1, 3).double())


def test_lattice_points_are_centres_of_equal_parts():
    points = lattice.lattice_points(affines.identity(1), affines.identity(1), (8, 8, 8), (2, 2, 2), samples=2)
    assert points.shape == (1, 64, 3)
    assert torch.allclose(points[0, :, 2].unique(), torch.tensor([0.5, 2.5, 4.5, 6.5]).double())


@pytest.mark.parametrize("degrees", [0.0, 40.0])
def test_lattice_points_are_inside_view_a_and_those_of_views_apart_are_not_inside_view_b(degrees):
    config = ViewSamplingConfig(SIZE, p_rotation=1.0, rotation_degrees=degrees)
    rng = np.random.default_rng(0)
    shared = []
    for _ in range(40):
        a, b = (sample_affine(rng, (22, 26, 30), config, (1.0, 0.8, 1.5))[None] for _ in range(2))
        points = lattice.lattice_points(a, b, SIZE, (3, 3, 3))
        assert lattice.inside(points, a, SIZE).all()
        shared.append(float(lattice.inside(points, b, SIZE).double().mean()))
        b[0, :, 3] += 100
        assert not lattice.inside(lattice.lattice_points(a, b, SIZE, (3, 3, 3)), b, SIZE).any()
    assert 0 < np.mean(shared) < 1


def test_the_overlap_of_a_view_and_a_smaller_or_turned_one():
    """Against the analytic share: a cube turned by 45 degrees shares a regular octagon's prism."""
    eighth = rotated(45.0)
    centre = torch.tensor([4.5, 4.5, 4.5], dtype=torch.float64)
    eighth[0, :, 3] = centre - eighth[0, :, :3] @ centre
    share = lattice.overlap_fraction(torch.cat([affines.identity(1), eighth]), (10, 10, 10), samples=40)
    assert share == pytest.approx(2 * (2**0.5 - 1), abs=0.01)
    half = shifted(5, 0, 0)
    assert lattice.overlap_fraction(torch.cat([affines.identity(1), half]), (10, 10, 10)) == pytest.approx(0.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_edges_of_a_view_are_inside_it(axis):
    points = torch.full((4, 3), 3.0, dtype=torch.float64)
    points[:, axis] = torch.tensor([-0.5, SIZE[axis] - 0.5, -0.5001, SIZE[axis] - 0.4999])
    assert lattice.inside(points[None], affines.identity(1), SIZE).tolist() == [[True, True, False, False]]


def test_views_differ_by_a_translation_or_not_whatever_the_leading_axes():
    maps = affines.identity(2, 4)
    maps[..., 3] = torch.arange(3.0)
    maps[0, 1, 2, 0], maps[1, 3, 0, 2] = 0.1, -0.1
    expected = torch.ones(2, 4, dtype=torch.bool)
    expected[0, 1] = expected[1, 3] = False
    assert torch.equal(affines.same_frame(maps, affines.identity(2, 4)), expected)
