"""Dice and surface distance against analytic shapes, a slow reference, MONAI and DeepMind's own code."""

import numpy as np
import pytest
import torch

from viewalign.evaluation.segmentation_metrics import dice, surface_dice

pytest.importorskip("monai")


def box(low, high, size=(40, 40, 40)):
    mask = np.zeros(size, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def ball(radius, centre=(20, 20, 20), spacing=(1.0, 1.0, 1.0), size=(40, 40, 40)):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij")).astype(float)
    step = np.array(spacing)[:, None, None, None]
    return np.sqrt((((grid - np.array(centre)[:, None, None, None]) * step) ** 2).sum(0)) <= radius


def test_dice():
    a, b = box((0, 0, 0), (10, 10, 10)), box((5, 0, 0), (15, 10, 10))
    assert dice(a, b) == pytest.approx(0.5)
    assert dice(a, a) == 1.0
    assert dice(a, np.zeros_like(a)) == 0.0
    assert np.isnan(dice(np.zeros_like(a), np.zeros_like(a)))


def test_a_slab_that_is_shifted():
    """Two faces of a slab as wide as the image: each is `shift` away from its like, all or nothing agrees."""
    for shift in (1, 2, 3):
        a, b = box((10, 0, 0), (20, 40, 40)), box((10 + shift, 0, 0), (20 + shift, 40, 40))
        # The four sides of the slab meet the image's border; they coincide but for the shifted ends.
        inside = surface_dice(a, b, (1, 1, 1), shift)
        outside = surface_dice(a, b, (1, 1, 1), shift - 0.01)
        assert inside == pytest.approx(1.0)
        assert outside < 1.0


def test_a_cube_that_is_shifted_keeps_its_sides():
    """The sides of a cube of 20³ that is shifted by 4 along one axis coincide; its two ends are 4 mm away."""
    a, b = box((8, 10, 10), (28, 30, 30)), box((12, 10, 10), (32, 30, 30))
    measured = surface_dice(a, b, (1, 1, 1), 1.0)
    # Of each surface of 6 x 400: the end that sticks out is 4 mm away; of the end inside the other all but a rim of
    # 1 mm is too far from its sides; of the four sides the 4 mm that stick out, less 1 mm of tolerance, are too far.
    assert measured == pytest.approx((2400 - 400 - 18**2 - 4 * 20 * 3) / 2400, abs=0.04)
    assert surface_dice(a, b, (1, 1, 1), 4.0) == pytest.approx(1.0)


def test_balls_of_two_radii():
    """Concentric balls whose radii differ by 3 agree from a tolerance of about 3 on, and not below."""
    a, b = ball(10), ball(13)
    assert surface_dice(a, b, (1, 1, 1), 3.6) == pytest.approx(1.0, abs=1e-6)
    assert surface_dice(a, b, (1, 1, 1), 1.0) == 0.0
    assert 0.05 < surface_dice(a, b, (1, 1, 1), 3.0) < 0.999


def test_spacing_is_in_array_order():
    a, b = box((10, 10, 10), (20, 20, 20)), box((11, 10, 10), (21, 20, 20))
    assert surface_dice(a, b, (3.0, 1.0, 1.0), 2.9) < 1.0
    assert surface_dice(a, b, (3.0, 1.0, 1.0), 3.0) == pytest.approx(1.0)
    assert surface_dice(a, b, (1.0, 3.0, 3.0), 1.0) == pytest.approx(1.0)


def test_empty_masks():
    full, empty = ball(5), np.zeros((40, 40, 40), bool)
    assert np.isnan(surface_dice(empty, empty, (1, 1, 1), 1))
    assert surface_dice(full, empty, (1, 1, 1), 100) == 0.0
    assert surface_dice(empty, full, (1, 1, 1), 100) == 0.0


def random_pair(seed):
    rng = np.random.default_rng(seed)
    spacing = tuple(rng.uniform(0.5, 3.0, 3))
    centre = rng.uniform(15, 25, 3)
    a = ball(rng.uniform(6, 14), centre, spacing)
    b = ball(rng.uniform(6, 14), centre + rng.uniform(-2, 2, 3), spacing)
    return a & (rng.random(a.shape) > 0.02), b, spacing


@pytest.mark.parametrize("seed", range(4))
def test_it_is_deepmind_s_definition(seed):
    theirs = pytest.importorskip("surface_distance")
    a, b, spacing = random_pair(seed)
    for tolerance in (0.0, 0.7, 1.5, 3.0):
        distances = theirs.compute_surface_distances(b, a, spacing)
        expected = theirs.compute_surface_dice_at_tolerance(distances, tolerance)
        assert surface_dice(a, b, spacing, tolerance) == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_is_monai_s_on_the_whole_volume():
    from monai.metrics.surface_dice import compute_surface_dice

    a, b, spacing = random_pair(9)
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (a, b)]
    whole = compute_surface_dice(
        *pair, class_thresholds=[1.0], include_background=True, spacing=list(spacing), use_subvoxels=True
    )
    assert surface_dice(a, b, spacing, 1.0) == pytest.approx(float(whole), abs=1e-6)
