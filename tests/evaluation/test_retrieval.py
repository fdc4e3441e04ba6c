import numpy as np
import pytest
import torch

from viewalign.evaluation.retrieval import evaluate_retrieval, retrieval_scores
from viewalign.recipes.loading import load
from viewalign.views.intensity_config import IntensityConfig
from viewalign.weights.encoder import EncoderOutput, build_untrained

NEVER = IntensityConfig(
    p_brightness=0, p_contrast=0, p_gamma=0, p_gamma_inverted=0, p_low_resolution=0, p_blur=0, p_noise=0
)


def test_hits_and_distances_by_hand():
    points = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 4, 0]])
    similarity = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 1]])
    hit, distance, chance = retrieval_scores(similarity, points)
    assert hit == pytest.approx(2 / 3)
    assert distance == pytest.approx(5 / 3)
    assert chance == pytest.approx(2 * (3 + 4 + 5) / 9)


class Coordinates(torch.nn.Module):
    """Acts as a perfect encoder: the image's smooth values identify the position."""

    size = (16, 16, 16)

    def forward(self, images):
        return EncoderOutput([images], images.mean((2, 3, 4)))


def test_features_that_encode_position_are_retrieved():
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 34, 32)), indexing="ij")
    bump = np.stack([np.exp(-3 * (axis - shift) ** 2) for axis in axes for shift in (-0.8, 0.0, 0.8)]).astype(
        np.float32
    )
    found = evaluate_retrieval(Coordinates(), [bump], intensity=NEVER)
    assert found.hits[0] > 0.95
    assert found.distances[0] < 0.2


def test_noise_is_at_chance_level():
    class Noise(Coordinates):
        def forward(self, images):
            rng = torch.Generator().manual_seed(0)
            return EncoderOutput([torch.randn(2, 64, 8, 8, 8, generator=rng)], images.mean((2, 3, 4)))

    image = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    found = evaluate_retrieval(Noise(), [image] * 4)
    assert np.mean(found.hits) < 0.05
    assert np.mean(found.distances) == pytest.approx(np.mean(found.chance), rel=0.15)


def test_equal_seeds_give_every_encoder_the_same_views():
    recipe = load("cva-resenc-xs", ["views.patch_size=[16,16,16]"])
    image = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    one, two = (evaluate_retrieval(build_untrained(recipe, 0), [image], seed=3) for _ in range(2))
    assert one == two
    assert one != evaluate_retrieval(build_untrained(recipe, 0), [image], seed=4)
