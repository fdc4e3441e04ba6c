"""The same seed gives the same views in every version: a run that is resumed after an update needs them."""

from functools import partial

import numpy as np
import pytest
import torch

from viewalign.utils.rng import make_rng, make_torch_generator
from viewalign.views import corruption
from viewalign.views.intensity import sample_intensity_parameters
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.latentcampus import sample_latentcampus
from viewalign.views.layouts import NestedViewConfig, sample_grid, sample_multi_crop, sample_nested
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig, sample_one, sample_pair

PLAIN = ViewSamplingConfig((16, 20, 24))
TURNED = ViewSamplingConfig((16, 20, 24), p_rotation=0.7, p_scale=0.7, independent=True)
SAMPLERS = {
    "pair": (sample_pair, PLAIN),
    "independent": (sample_pair, TURNED),
    "one": (sample_one, TURNED),
    "grid": (sample_grid, PLAIN),
    "nested": (sample_nested, TURNED),
    "nested in one": (partial(sample_nested, nesting=NestedViewConfig(min_iou=1.1)), PLAIN),
    "multi-crop": (sample_multi_crop, TURNED),
    "latentcampus": (sample_latentcampus, PLAIN),
}


def figures(rows):
    """Return the mean of numbers, and a sum that depends on their order."""
    values = np.concatenate([np.asarray(row, dtype=np.float64).ravel() for row in rows])
    return float(values.mean()), float(values @ np.sin(np.arange(len(values))))


def geometry(name):
    sampler, config = SAMPLERS[name]
    sampled = [sampler(make_rng(seed, name), (60, 50, 70), config, (1.0, 0.8, 2.5)) for seed in range(20)]
    local = [views.local.to_volume for views in sampled if views.local is not None]
    claimed = [views.claimed for views in sampled if hasattr(views, "claimed")]
    return figures([*(views.to_volume for views in sampled), *(views.overlap for views in sampled), *local, *claimed])


def intensity():
    drawn = [sample_intensity_parameters(make_rng(seed), IntensityConfig()) for seed in range(100)]
    return figures([[float(value or 0.0) for value in vars(parameters).values()] for parameters in drawn])


def corrupted():
    size, config = (12, 10, 14), corruption.CorruptionConfig()
    view, valid = torch.sin(torch.arange(1680.0)).view(1, *size), torch.ones(1, *size, dtype=torch.bool)
    return figures(
        corruption.corrupt(view, valid, config, make_rng(seed), make_torch_generator("cpu", seed)) for seed in range(20)
    )


def boxes():
    cutouts = [corruption.sample_cutouts(make_rng(seed), (16, 20, 24), 0.5, 0.4) for seed in range(10)]
    labels = [corruption.sample_fusion_labels(make_rng(seed), (16, 20, 24)) for seed in range(10)]
    return figures([*cutouts, *labels])


def volumes():
    """Of stores below, at and above the size from which only some of the volumes are candidates."""
    drawn = []
    for count in (30, 256, 257):
        for weights in (None, np.arange(count) % 5.0):
            subjects, numbers = np.arange(count) // 2, np.arange(count)
            reader = SampleReader(ArraySource(np.zeros(1)), subjects, numbers, PLAIN, 4, seed=0, weights=weights)
            drawn.append([reader.volume_of(k) for k in range(40)])
    return figures(drawn)


STORED = {
    "pair": (6.61565292511519, 101.92706766922178),
    "independent": (6.291543330008481, -312.6460666161203),
    "one": (6.662196312756009, 58.96129448753581),
    "grid": (6.9883867110179585, -264.5273675469064),
    "nested": (7.5531933225024765, 3.9880471674016515),
    "nested in one": (7.38277472677376, 362.69604701879285),
    "multi-crop": (7.802586813112679, 502.07456317006285),
    "latentcampus": (4.775818083374978, 265.55941746007596),
    "intensity": (0.17974007557251842, 17.118262676698475),
    "corruption": (-0.020834669548771563, -964.1494611178173),
    "boxes": (1.06546875, 13.052141623469621),
    "volumes": (84.42083333333333, 117.78261097421677),
}


OTHERS = {"intensity": intensity, "corruption": corrupted, "boxes": boxes, "volumes": volumes}


@pytest.mark.parametrize("name", [*SAMPLERS, *OTHERS])
def test_seeds_give_the_stored_numbers(name):
    found = OTHERS.get(name, lambda: geometry(name))()
    assert found == pytest.approx(STORED[name], rel=1e-6, abs=1e-6)
