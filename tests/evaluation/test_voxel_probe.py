"""The voxel probe: features at their voxels, and scores of informative and of random features."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from viewalign.errors import UserError
from viewalign.evaluation import voxel_probe as probes
from viewalign.evaluation.voxel_features import EncoderFeatures, IntensityFeatures, tile_starts
from viewalign.evaluation.voxel_probe import Case, VoxelProbeSettings, compare, probe

pytestmark = pytest.mark.slow

SIZE = (16, 16, 16)


class Pyramid(nn.Module):
    """Stands for an encoder: the image itself, and the image averaged over blocks of 2 and 4 voxels."""

    size, stride = SIZE, (4, 4, 4)

    def forward(self, images):
        return SimpleNamespace(maps=[images, F.avg_pool3d(images, 2), F.avg_pool3d(images, 4)])


class Noise(nn.Module):
    """Stands for an encoder whose features have nothing to do with the image."""

    size, stride = SIZE, (4, 4, 4)

    def forward(self, images):
        generator = torch.Generator().manual_seed(0)
        return SimpleNamespace(maps=[torch.randn(len(images), 6, 8, 8, 8, generator=generator)])


def ramp(shape, axis):
    return np.broadcast_to(
        np.arange(shape[axis], dtype=np.float32).reshape([-1 if k == axis else 1 for k in range(3)]), shape
    )


def striped(name, shape=(24, 20, 28)):
    """A case whose labels are bands of its intensity, which is a ramp."""
    image = np.array(ramp(shape, 2))
    labels = (image > 9).astype(np.int64) + (image > 19)
    return Case(name, image, labels)


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 37, 50), (17, 16, 90)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_features_are_read_at_their_voxels(shape, axis):
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 3)[::7]
    rows = EncoderFeatures(Pyramid())(np.array(ramp(shape, axis)), voxels)
    assert rows.shape == (len(voxels), 3)
    np.testing.assert_allclose(rows, np.repeat(voxels[:, axis, None], 3, axis=1), atol=1e-4)


def test_a_volume_smaller_than_a_tile_is_centred():
    shape = (10, 30, 16)
    voxels = np.array([[4, 10, 8], [5, 20, 3]])
    rows = EncoderFeatures(Pyramid())(np.array(ramp(shape, 1)), voxels)
    np.testing.assert_allclose(rows[:, 0], voxels[:, 1], atol=1e-4)
    assert tile_starts(10, 16).tolist() == [-3]


@pytest.mark.parametrize(("length", "side"), [(16, 16), (17, 16), (24, 16), (25, 16), (100, 32)])
def test_tiles_cover_an_axis_and_overlap_by_half(length, side):
    starts = tile_starts(length, side)
    assert starts[0] == 0
    assert starts[-1] == length - side
    assert np.all(np.diff(starts) <= side / 2 + 1)


def test_the_batch_of_tiles_does_not_change_features():
    case = striped("a")
    voxels = probes.draw_voxels(case, 50, 0)
    one, many = (EncoderFeatures(Pyramid(), batch=n)(case.image, voxels) for n in (1, 8))
    np.testing.assert_array_equal(one, many)


def test_informative_voxel_features_are_detected():
    rng = np.random.default_rng(0)
    cases = []
    for name in "abcdefghi":
        labels = np.zeros((24, 20, 28), dtype=np.int64)
        labels[:, :, rng.integers(6, 10) :] = 1
        labels[:, :, rng.integers(16, 20) :] = 2
        cases.append(Case(name, labels.astype(np.float32), labels))
    score = probe(EncoderFeatures(Pyramid()), cases[:4], cases[4:])
    assert score.dice > 0.99
    assert score.balanced_accuracy > 0.99
    assert score.interval is not None
    assert score.interval[0] <= score.dice <= score.interval[1]


def test_noise_features_are_near_chance():
    rng = np.random.default_rng(1)
    cases = [
        Case(name, rng.normal(size=(20, 20, 20)).astype(np.float32), rng.integers(0, 3, size=(20, 20, 20)))
        for name in "abcd"
    ]
    score = probe(EncoderFeatures(Noise()), cases[:2], cases[2:])
    assert abs(score.balanced_accuracy - 1 / 3) < 0.05
    assert score.interval is None


def test_a_probe_is_deterministic():
    cases = [striped(name) for name in "abcd"]
    scores = [
        probe(IntensityFeatures(), cases[:2], cases[2:], VoxelProbeSettings(seed=3, per_class=20)) for _ in range(2)
    ]
    assert scores[0] == scores[1]


def test_drawn_voxels_depend_on_seed_and_name_only():
    case = striped("a")
    first = probes.draw_voxels(case, 30, 0)
    np.testing.assert_array_equal(first, probes.draw_voxels(striped("a"), 30, 0))
    assert not np.array_equal(first, probes.draw_voxels(striped("b"), 30, 0))
    assert not np.array_equal(first, probes.draw_voxels(case, 30, 1))
    assert np.bincount(case.labels[tuple(first.T)]).tolist() == [30, 30, 30]


def test_the_lattice_is_regular_and_within_its_limit():
    voxels = probes.lattice_voxels((40, 31, 2), 100)
    assert len(voxels) <= 100
    assert (voxels.max(axis=0) < (40, 31, 2)).all()
    assert len(probes.lattice_voxels((4, 5, 6), 120)) == 120


def test_dice_and_recall_by_hand():
    truth, guess = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    assert probes.mean_dice(guess, truth, [1, 2]) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert probes.mean_dice(guess, truth, [1, 5]) == pytest.approx(4 / 5)
    assert np.isnan(probes.mean_dice(guess, truth, [5]))
    assert probes.balanced_accuracy(guess, truth) == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)


def test_the_penalty_is_chosen_by_cross_validation():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 50)
    labels = np.tile(np.repeat([0, 1], 25), 4)
    rows = (labels[:, None] + rng.normal(scale=0.3, size=(200, 3))).astype(np.float32)
    assert probes.choose_penalty(rows, labels, groups) in probes.PENALTIES
    assert probes.choose_penalty(rows[:50], labels[:50], groups[:50]) == 1e-2


def test_comparison_and_its_file():
    cases = [striped(name) for name in "abcdefgh"]
    result = compare(
        EncoderFeatures(Pyramid()), EncoderFeatures(Noise()), cases[:3], cases[3:], "bands", note="made up"
    )
    assert result["pretrained"] > result["untrained"]
    assert result["gain"]["value"] == pytest.approx(result["pretrained"] - result["untrained"])
    written = json.loads(json.dumps(result))
    keys = {"task", "metric", "pretrained", "untrained", "baselines", "cases_train", "cases_test", "interval", "note"}
    assert keys <= set(written)
    assert (written["cases_train"], written["cases_test"], written["note"]) == (3, 5, "made up")
    assert len(written["interval"]["pretrained"]) == 2
    assert 0 <= written["baselines"]["intensity"] <= 1


def test_probes_without_cases_or_classes_are_errors():
    flat = Case("a", np.zeros((16, 16, 16), dtype=np.float32), np.zeros((16, 16, 16), dtype=np.int64))
    with pytest.raises(UserError, match="class"):
        probe(IntensityFeatures(), [flat], [flat])
    with pytest.raises(UserError, match="volumes"):
        probe(IntensityFeatures(), [], [flat])
    with pytest.raises(ValueError, match=r"\(2, 2, 3\)"):
        Case("a", np.zeros((2, 2, 2), dtype=np.float32), np.zeros((2, 2, 3), dtype=np.int64))
