import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from viewalign.views import intensity
from viewalign.views.batch import sample_views
from viewalign.views.intensity import IntensityParameters
from viewalign.views.intensity_config import IntensityConfig


@pytest.fixture
def view():
    torch.manual_seed(0)
    valid = torch.ones(1, 14, 16, 18, dtype=torch.bool)
    valid[:, 11:] = False
    return torch.randn(2, 14, 16, 18) * valid, valid


def test_probabilities_of_transforms():
    config = IntensityConfig()
    sampled = [intensity.sample_intensity_parameters(np.random.default_rng(i), config) for i in range(4000)]
    for name in ("brightness", "contrast", "gamma", "gamma_inverted", "low_resolution", "blur", "noise"):
        attribute = {"blur": "blur_sigma", "noise": "noise_variance"}.get(name, name)
        share = np.mean([getattr(parameters, attribute) is not None for parameters in sampled])
        assert share == pytest.approx(getattr(config, f"p_{name}"), abs=0.025)


def test_parameters_are_in_their_ranges():
    config = IntensityConfig(p_gamma=1)
    gammas = [intensity.sample_intensity_parameters(np.random.default_rng(i), config).gamma for i in range(500)]
    assert 0.7 <= min(gammas) < 0.72
    assert 1.48 < max(gammas) <= 1.5


def test_brightness_and_contrast_factors(view):
    image, valid = view
    assert torch.allclose(intensity.intensity_transform(image, valid, IntensityParameters(brightness=1.2)), image * 1.2)
    out = intensity.intensity_transform(image, valid, IntensityParameters(contrast=0.8))
    values, before = out[:, valid[0]], image[:, valid[0]]
    assert torch.allclose(values.mean(1), before.mean(1), atol=1e-5)
    assert torch.allclose(values.std(1), before.std(1) * 0.8, rtol=1e-3)
    wide = intensity.intensity_transform(image, valid, IntensityParameters(contrast=1.25))[:, valid[0]]
    assert wide.amax() <= before.amax() + 1e-5


def test_gamma_preserves_mean_and_std_of_valid_voxels(view):
    image, valid = view
    for parameters in (IntensityParameters(gamma=1.4), IntensityParameters(gamma_inverted=0.75)):
        out = intensity.intensity_transform(image, valid, parameters)[:, valid[0]]
        before = image[:, valid[0]]
        assert torch.allclose(out.mean(1), before.mean(1), atol=1e-4)
        assert torch.allclose(out.std(1), before.std(1), rtol=1e-3)
        assert not torch.allclose(out, before, atol=0.05)
        ranks = [values.argsort().argsort() for values in (out[0], before[0])]
        assert torch.equal(*ranks)


def test_blur_agrees_with_scipy(view):
    image, _ = view
    ours = intensity.blur(image, 0.8)
    theirs = gaussian_filter(image.numpy(), (0, 0.8, 0.8, 0.8), mode="nearest", radius=(0, 2, 2, 2))
    assert np.allclose(ours.numpy(), theirs, atol=1e-5)


@pytest.mark.parametrize("rician", [False, True])
def test_noise_has_the_requested_variance(rician):
    image = torch.full((1, 40, 40, 40), 5.0)
    image[0, 0, 0, 0] = 0.0
    valid = torch.ones(1, 40, 40, 40, dtype=torch.bool)
    parameters = IntensityParameters(noise_variance=0.09, rician=rician)
    out = intensity.degradation_transform(image, valid, parameters, torch.Generator().manual_seed(0))
    assert float((out - image).flatten()[1:].std()) == pytest.approx(0.3, rel=0.03)
    again = intensity.degradation_transform(image, valid, parameters, torch.Generator().manual_seed(0))
    assert torch.equal(out, again)


def test_padding_stays_zero_and_is_not_in_statistics(view):
    image, valid = view
    everything = IntensityParameters(1.1, 1.2, 0.8, 1.3, 0.6, 0.7, 0.05, True)
    for out in (
        intensity.intensity_transform(image, valid, everything),
        intensity.degradation_transform(image, valid, everything, torch.Generator().manual_seed(0)),
    ):
        assert (out * ~valid == 0).all()
    dirty = image.clone()
    dirty[:, ~valid[0]] = 1e6
    clean = intensity.intensity_transform(image, valid, everything)
    assert torch.allclose(intensity.intensity_transform(dirty, valid, everything), clean, atol=1e-4)


def test_low_resolution_preserves_constants():
    image = torch.full((1, 9, 10, 11), 2.5)
    out = intensity.degradation_transform(
        image, torch.ones(1, 9, 10, 11, dtype=torch.bool), IntensityParameters(low_resolution=0.5)
    )
    assert torch.allclose(out, image)


def test_targets_have_intensity_transforms_but_no_degradation():
    never = {name: 0.0 for name in IntensityConfig.model_fields if name.startswith("p_")}
    degraded = {"p_low_resolution": 1.0, "low_resolution": (0.5, 0.5), "p_blur": 1.0, "p_noise": 1.0}
    array, size = np.random.default_rng(0).normal(size=(20, 20, 20)), (8, 8, 8)
    plain = sample_views(array, size, seed=3)
    noisy = sample_views(array, size, seed=3, intensity=IntensityConfig(**{**never, **degraded}))
    bright = {"p_brightness": 1.0, "brightness": (2.0, 2.0)}
    brighter = sample_views(array, size, seed=3, intensity=IntensityConfig(**{**never, **degraded, **bright}))
    assert torch.equal(plain.targets, plain.views)
    assert torch.equal(noisy.targets, plain.views)
    assert torch.equal(brighter.targets, 2 * plain.views)
    assert not torch.equal(noisy.views, plain.views)
