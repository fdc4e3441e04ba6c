"""Random intensity transforms of one view: parameters are sampled first and then applied on the view's device.

The transforms are those of nnU-Net's augmentation (Isensee et al., 2021), as in the published recipes, with statistics
over valid voxels only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.views.intensity_config import IntensityConfig

Range = tuple[float, float]


@dataclass(frozen=True)
class IntensityParameters:
    """Sampled parameters of one view; None where a transform is not applied.

    Attributes:
        brightness, contrast: factors.
        gamma, gamma_inverted: exponents, on the image and on its negative.
        low_resolution: fraction of the resolution that is kept.
        blur_sigma: in voxels.
        noise_variance: in squared units of the normalised image.
        rician: whether noise is Rician instead of Gaussian.
    """

    brightness: float | None = None
    contrast: float | None = None
    gamma_inverted: float | None = None
    gamma: float | None = None
    low_resolution: float | None = None
    blur_sigma: float | None = None
    noise_variance: float | None = None
    rician: bool = False


def sample_intensity_parameters(rng: np.random.Generator, config: IntensityConfig) -> IntensityParameters:
    """Sample one view's parameters; the same numbers are sampled for every config."""
    chance = rng.random(7)
    values = rng.random(7)

    def maybe(slot: int, probability: float, limits: Range) -> float | None:
        low, high = limits
        return float(low + (high - low) * values[slot]) if chance[slot] < probability else None

    return IntensityParameters(
        brightness=maybe(0, config.p_brightness, config.brightness),
        contrast=maybe(1, config.p_contrast, config.contrast),
        gamma_inverted=maybe(2, config.p_gamma_inverted, config.gamma),
        gamma=maybe(3, config.p_gamma, config.gamma),
        low_resolution=maybe(4, config.p_low_resolution, config.low_resolution),
        blur_sigma=maybe(5, config.p_blur, config.blur_sigma),
        noise_variance=maybe(6, config.p_noise, config.noise_variance),
        rician=bool(rng.random() < 0.5),
    )


def intensity_transform(view: Tensor, valid: Tensor, parameters: IntensityParameters) -> Tensor:
    """Apply brightness, contrast and gamma to a view (C, D, H, W); it is 0 where `valid` (1, D, H, W) is false."""
    before = view
    if parameters.brightness is not None:
        view = view * parameters.brightness
    if parameters.contrast is not None:
        view = _contrast(view, valid, parameters.contrast)
    if parameters.gamma_inverted is not None:
        view = -_gamma(-view, valid, parameters.gamma_inverted)
    if parameters.gamma is not None:
        view = _gamma(view, valid, parameters.gamma)
    return view if view is before else view * valid


def degradation_transform(
    view: Tensor, valid: Tensor, parameters: IntensityParameters, generator: torch.Generator | None = None
) -> Tensor:
    """Apply low resolution, blur and noise to a view (C, D, H, W); it is 0 where `valid` (1, D, H, W) is false.

    `generator` is the source of the noise, on the view's device.
    """
    before = view
    if parameters.low_resolution is not None:
        view = _low_resolution(view, parameters.low_resolution)
    if parameters.blur_sigma is not None:
        view = blur(view, parameters.blur_sigma)
    if parameters.noise_variance is not None:
        view = _noise(view, parameters.noise_variance**0.5, parameters.rician, generator)
    return view if view is before else view * valid


def valid_range(view: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest valid value (C, 1, 1, 1) of a view; both 0 if no voxel is valid."""
    low = torch.where(valid, view, torch.inf).amin((1, 2, 3), keepdim=True)
    high = torch.where(valid, view, -torch.inf).amax((1, 2, 3), keepdim=True)
    return torch.nan_to_num(low, posinf=0.0), torch.nan_to_num(high, neginf=0.0)


def _valid_mean_and_std(view: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    count = valid.sum().clamp(min=1)
    mean = (view * valid).sum((1, 2, 3), keepdim=True) / count
    variance = ((view - mean) * valid).square().sum((1, 2, 3), keepdim=True) / count
    return mean, variance.sqrt()


def _contrast(view: Tensor, valid: Tensor, factor: float) -> Tensor:
    """Scale values about their mean and clip them to their former range."""
    mean, _ = _valid_mean_and_std(view, valid)
    low, high = valid_range(view, valid)
    return torch.minimum(torch.maximum((view - mean) * factor + mean, low), high)


def _gamma(view: Tensor, valid: Tensor, exponent: float) -> Tensor:
    """Apply an exponent over the range of values, then restore mean and standard deviation."""
    mean, std = _valid_mean_and_std(view, valid)
    low, high = valid_range(view, valid)
    extent = (high - low).clamp(min=1e-7)
    out = ((view - low) / extent).clamp(0, 1) ** exponent * extent + low
    new_mean, new_std = _valid_mean_and_std(out, valid)
    return (out - new_mean) / new_std.clamp(min=1e-7) * std + mean


def _low_resolution(view: Tensor, fraction: float) -> Tensor:
    """Downsample by nearest neighbours and upsample linearly."""
    size = view.shape[1:]
    small = [max(1, round(n * fraction)) for n in size]
    low = F.interpolate(view[None], small, mode="nearest-exact")
    return F.interpolate(low, size, mode="trilinear", align_corners=False)[0]


def blur(view: Tensor, sigma: float) -> Tensor:
    """Apply a Gaussian filter of `sigma` voxels to a view (C, D, H, W), truncated at 3 sigma, borders replicated."""
    radius = max(1, int(3 * sigma + 0.5))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=view.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(view.dtype)
    out = view[:, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 2 * radius + 1
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        out = F.conv3d(F.pad(out, padding, mode="replicate"), kernel.view(shape))
    return out[:, 0]


def _noise(view: Tensor, std: float, rician: bool, generator: torch.Generator | None) -> Tensor:
    """Add Gaussian noise, or Rician noise (Gudbjartsson & Patz, 1995) relative to the view's lowest value."""

    def normal() -> Tensor:
        return torch.randn(view.shape, generator=generator, device=view.device, dtype=view.dtype) * std

    if not rician:
        return view + normal()
    floor = view.amin((1, 2, 3), keepdim=True)
    return torch.sqrt((view - floor + normal()).square() + normal().square()) + floor
