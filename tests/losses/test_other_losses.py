"""Losses of pretext tasks against loops."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from viewalign.losses.contrastive import view_nt_xent
from viewalign.losses.overlap import orthogonality, overlap_loss, overlap_similarity
from viewalign.losses.reconstruction import masked_l1
from viewalign.losses.registration import local_ncc, roughness
from viewalign.losses.segmentation import cross_entropy, soft_dice


def test_view_nt_xent_agrees_with_a_loop():
    torch.manual_seed(0)
    embedded, subject = torch.randn(2, 4, 6), torch.tensor([0, 1, 2, 0])  # images 0 and 3 are of one subject
    losses, hits = [], []
    for view in range(2):
        for image in range(4):
            anchor = embedded[view, image]

            def similarity(v, i, anchor=anchor):
                return math.exp(float(F.cosine_similarity(anchor, embedded[v, i], dim=0)) / 0.2)

            positive = similarity(1 - view, image)
            negatives = [similarity(v, i) for v in range(2) for i in range(4) if subject[i] != subject[image]]
            losses.append(-math.log(positive / (positive + sum(negatives))))
            hits.append(positive > max(negatives))
    contrast = view_nt_xent(embedded, subject, 0.2)
    assert float(contrast.loss) == pytest.approx(sum(losses) / 8, rel=1e-5)
    assert float(contrast.accuracy) == pytest.approx(sum(hits) / 8)


def test_view_nt_xent_of_equal_vectors():
    contrast = view_nt_xent(torch.ones(2, 5, 3), torch.arange(5))
    assert float(contrast.loss) == pytest.approx(math.log(9))  # one positive and the two views of four others


def test_dice_and_cross_entropy_agree_with_loops():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(0, 3, (2, 4, 4, 4))
    counts = torch.rand(2, 1, 4, 4, 4) < 0.7
    dice, entropy = [], []
    for image in range(2):
        probability = logits[image].softmax(0)
        where = counts[image, 0]
        picked = probability.gather(0, labels[image][None])[0]
        entropy.append(float(-picked[where].log().mean()))
        for label in range(3):
            truth = (labels[image] == label)[where].float()
            result = probability[label][where]
            dice.append(float((2 * (truth * result).sum() + 1e-5) / (truth.sum() + result.sum() + 1e-5)))
    assert float(soft_dice(logits, labels, counts)) == pytest.approx(1 - sum(dice) / 6, rel=1e-5)
    assert float(cross_entropy(logits, labels, counts)) == pytest.approx(sum(entropy) / 2, rel=1e-5)


def test_dice_and_cross_entropy_of_correct_logits_are_0():
    labels = torch.randint(0, 3, (1, 4, 4, 4))
    logits = 50.0 * F.one_hot(labels, 3).movedim(-1, 1)
    everywhere = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    assert float(soft_dice(logits, labels, everywhere)) == pytest.approx(0, abs=1e-5)
    assert float(cross_entropy(logits, labels, everywhere)) == pytest.approx(0, abs=1e-5)


def test_a_class_that_is_neither_there_nor_predicted_has_a_dice_of_1():
    labels = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    logits = 100.0 * F.one_hot(labels, 3).movedim(-1, 1)
    everywhere = torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)
    assert float(soft_dice(logits, labels, everywhere)) == pytest.approx(0, abs=1e-6)
    missed = logits.roll(1, 1)  # class 1 for class 0: both have a Dice of 0, class 2 of 1
    assert float(soft_dice(missed, labels, everywhere)) == pytest.approx(2 / 3, abs=1e-6)


def test_overlap_loss_agrees_with_a_loop():
    torch.manual_seed(0)
    similarity, overlap = torch.rand(2, 3, 4), torch.rand(2, 3, 4) * (torch.rand(2, 3, 4) < 0.5)
    counts = torch.rand(2, 3, 4) < 0.8
    images = []
    for image in range(2):
        near, weight, far = 0.0, 0.0, []
        for y, p, c in zip(overlap[image].flatten(), similarity[image].flatten(), counts[image].flatten(), strict=True):
            if c and y > 0:
                near += float(y) * -math.log(1 - abs(float(y - p)))
                weight += float(y)
            elif c:
                far.append(float(p) ** 2)
        images.append(near / weight + sum(far) / len(far))
    assert float(overlap_loss(similarity, overlap, counts)) == pytest.approx(sum(images) / 2, rel=1e-5)


def test_overlap_loss_of_correct_similarities_is_0():
    overlap = torch.tensor([[[0.25, 0.75, 0.0]]])
    everything = torch.ones(1, 1, 3, dtype=torch.bool)
    assert float(overlap_loss(overlap, overlap, everything)) == pytest.approx(0, abs=1e-6)


def test_orthogonality_of_known_bases():
    counts = torch.ones(1, 3, dtype=torch.bool)
    assert float(orthogonality(torch.eye(3)[None], counts)) == pytest.approx(0)
    assert float(orthogonality(torch.ones(1, 3, 5), counts)) == pytest.approx(1)
    one_pair = torch.tensor([[True, True, False]])
    bases = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]])
    assert float(orthogonality(bases, one_pair)) == pytest.approx(0.5)
    assert (overlap_similarity(bases, -bases) == 0).all()


def test_masked_l1():
    counts = torch.tensor([True, False]).view(1, 1, 1, 1, 2)
    assert float(masked_l1(torch.tensor([1.0, 9.0]).view(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 2), counts)) == 1.0


@pytest.mark.parametrize("contrast", [1.0, 0.01])
def test_local_ncc_agrees_with_a_loop(contrast):
    """As in VoxelMorph, the constant is added to a product of sums over the window, so that faint tissue counts."""
    rng = np.random.default_rng(0)
    moved, fixed = rng.normal(size=(2, 2, 6, 7, 5)), rng.normal(size=(2, 2, 6, 7, 5))
    fixed += 0.5 * moved
    moved, fixed = contrast * moved, contrast * fixed
    counts = rng.random((2, 1, 6, 7, 5)) < 0.8
    images = []
    for k in range(2):
        losses = []
        for channel in range(2):
            for d, h, w in zip(*np.nonzero(counts[k, 0]), strict=True):
                place = tuple(slice(max(0, x - 1), x + 2) for x in (d, h, w))
                where = counts[k, 0][place]
                a, b = (image[k, channel][place][where] for image in (moved, fixed))
                a, b = a - a.mean(), b - b.mean()
                losses.append(1 - (a * b).sum() ** 2 / ((a * a).sum() * (b * b).sum() + 1e-5))
        images.append(np.mean(losses))
    result = local_ncc(*(torch.from_numpy(one) for one in (moved, fixed, counts)), window=3)
    assert float(result) == pytest.approx(np.mean(images), rel=1e-9)


def test_local_ncc_ignores_contrast():
    torch.manual_seed(0)
    image, everywhere = torch.randn(1, 1, 12, 12, 12), torch.ones(1, 1, 12, 12, 12, dtype=torch.bool)
    assert float(local_ncc(3 - 2 * image, image, everywhere)) == pytest.approx(0, abs=1e-3)
    assert float(local_ncc(image.roll(1, 2), image, everywhere)) > 0.9
    for constant in (1.0, 0.1, 37.3):
        assert float(local_ncc(torch.full_like(image, constant), image, everywhere)) == pytest.approx(1)
    assert float(local_ncc(0.01 * image, 0.01 * image, everywhere)) < 0.01


def test_roughness_of_ramps():
    d, h, _ = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (4, 5, 6)), indexing="ij")
    field = torch.stack([2 * d, 3 * h, torch.ones_like(d)])[None]
    # One slope of 2 and one of 3 among nine; along each axis the mean over three components.
    assert float(roughness(field)) == pytest.approx((4 / 3 + 9 / 3 + 0) / 3)
    assert float(roughness(field[:, :, :1])) == pytest.approx((9 / 3 + 0) / 2)


@pytest.mark.parametrize("grid", [(32, 16, 24), (16, 8, 12), (8, 16, 6), (4, 4, 1)])
def test_roughness_in_voxels_does_not_depend_on_the_grid(grid):
    """Slopes of 0.1 and 0.3 per voxel along D and H, of displacements in voxels."""
    size = (32, 16, 24)
    d, h, _ = torch.meshgrid(
        *(n / m * (torch.arange(m, dtype=torch.float64) + 0.5) for n, m in zip(size, grid, strict=True)), indexing="ij"
    )
    field = torch.stack([0.1 * d, 0.3 * h, torch.ones_like(d)])[None]
    axes = sum(n > 1 for n in grid)
    assert float(roughness(field, size)) == pytest.approx((0.1**2 + 0.3**2) / 3 / axes)
