"""Changes of intensity: drawn per view from its own generator, applied to one view on its device.

Drawing and applying are apart, so that a change can be replayed and tested. Statistics are those of the valid voxels.
The forms are those of nnU-Net's augmentation (Isensee et al., 2021), which the published recipes use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Range = tuple[float, float]


@dataclass(frozen=True)
class IntensityConfig:
    """Probabilities and ranges of what may be drawn; see `PhotometricSettings` for the names."""

    p_brightness: float = 0.15
    brightness: Range = (0.75, 1.25)
    p_contrast: float = 0.15
    contrast: Range = (0.75, 1.25)
    p_gamma: float = 0.3
    p_gamma_inverted: float = 0.1
    gamma: Range = (0.7, 1.5)
    p_low_resolution: float = 0.1
    low_resolution: Range = (0.5, 1.0)
    p_blur: float = 0.2
    blur_sigma: Range = (0.5, 1.0)
    p_noise: float = 0.1
    noise_variance: Range = (0.0, 0.1)


@dataclass(frozen=True)
class IntensityParameters:
    """What was drawn for one view; None where a change does not happen.

    Attributes:
        brightness, contrast, gamma, gamma_inverted: factors and exponents.
        low_resolution: resolution kept, as a fraction.
        blur_sigma: in voxels.
        noise_variance: in squared units of the normalised image.
        rician: whether noise is Rician, else Gaussian.
    """

    brightness: float | None = None
    contrast: float | None = None
    gamma_inverted: float | None = None
    gamma: float | None = None
    low_resolution: float | None = None
    blur_sigma: float | None = None
    noise_variance: float | None = None
    rician: bool = False

    @property
    def recolours(self) -> bool:
        """Whether brightness, contrast or gamma changes."""
        return any(value is not None for value in (self.brightness, self.contrast, self.gamma, self.gamma_inverted))

    @property
    def degrades(self) -> bool:
        """Whether resolution is lost, or blur or noise added."""
        return any(value is not None for value in (self.low_resolution, self.blur_sigma, self.noise_variance))


def sample_intensity_parameters(rng: np.random.Generator, ranges: IntensityConfig) -> IntensityParameters:
    """Draw one view's changes; all numbers are drawn always, so that one probability does not shift another's draw."""
    chance = rng.random(7)
    values = rng.random(7)

    def maybe(slot: int, probability: float, limits: Range) -> float | None:
        low, high = limits
        return float(low + (high - low) * values[slot]) if chance[slot] < probability else None

    return IntensityParameters(
        brightness=maybe(0, ranges.p_brightness, ranges.brightness),
        contrast=maybe(1, ranges.p_contrast, ranges.contrast),
        gamma_inverted=maybe(2, ranges.p_gamma_inverted, ranges.gamma),
        gamma=maybe(3, ranges.p_gamma, ranges.gamma),
        low_resolution=maybe(4, ranges.p_low_resolution, ranges.low_resolution),
        blur_sigma=maybe(5, ranges.p_blur, ranges.blur_sigma),
        noise_variance=maybe(6, ranges.p_noise, ranges.noise_variance),
        rician=bool(rng.random() < 0.5),
    )


def intensity_transform(view: Tensor, valid: Tensor, change: IntensityParameters) -> Tensor:
    """Apply brightness, contrast and gamma to a view (C, D, H, W) that is 0 where it is not valid; so is the result."""
    if not change.recolours:
        return view
    if change.brightness is not None:
        view = view * change.brightness
    if change.contrast is not None:
        view = _contrast(view, valid, change.contrast)
    if change.gamma_inverted is not None:
        view = -_gamma(-view, valid, change.gamma_inverted)
    if change.gamma is not None:
        view = _gamma(view, valid, change.gamma)
    return view * valid


def degradation_transform(
    view: Tensor, valid: Tensor, change: IntensityParameters, generator: torch.Generator | None = None
) -> Tensor:
    """Apply low resolution, blur and noise to a view (C, D, H, W) that is 0 where it is not valid; so is the result.

    Args:
        view: the view, float32.
        valid: (1, D, H, W) bool.
        change: what was drawn.
        generator: source of the noise, on the view's device.
    """
    if not change.degrades:
        return view
    if change.low_resolution is not None:
        view = _coarsen(view, change.low_resolution)
    if change.blur_sigma is not None:
        view = blur(view, change.blur_sigma)
    if change.noise_variance is not None:
        view = _noise(view, change.noise_variance**0.5, change.rician, generator)
    return view * valid


def _over_valid(view: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C, 1, 1, 1) of the valid voxels."""
    count = valid.sum().clamp(min=1)
    mean = (view * valid).sum((1, 2, 3), keepdim=True) / count
    variance = ((view - mean) * valid).square().sum((1, 2, 3), keepdim=True) / count
    return mean, variance.sqrt()


def _range_of_valid(view: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.where(valid, view, torch.inf).amin((1, 2, 3), keepdim=True)
    high = torch.where(valid, view, -torch.inf).amax((1, 2, 3), keepdim=True)
    return torch.nan_to_num(low, posinf=0.0), torch.nan_to_num(high, neginf=0.0)


def _contrast(view: Tensor, valid: Tensor, factor: float) -> Tensor:
    """Stretch values about their mean and keep them within their old range."""
    mean, _ = _over_valid(view, valid)
    low, high = _range_of_valid(view, valid)
    return torch.minimum(torch.maximum((view - mean) * factor + mean, low), high)


def _gamma(view: Tensor, valid: Tensor, exponent: float) -> Tensor:
    """Bend values over their range by an exponent, then give back their mean and deviation."""
    mean, deviation = _over_valid(view, valid)
    low, high = _range_of_valid(view, valid)
    extent = (high - low).clamp(min=1e-7)
    bent = ((view - low) / extent).clamp(0, 1) ** exponent * extent + low
    new_mean, new_deviation = _over_valid(bent, valid)
    return (bent - new_mean) / new_deviation.clamp(min=1e-7) * deviation + mean


def _coarsen(view: Tensor, share: float) -> Tensor:
    """Drop to a share of the resolution by nearest voxels and come back linearly."""
    size = view.shape[1:]
    small = [max(1, round(n * share)) for n in size]
    low = F.interpolate(view[None], small, mode="nearest-exact")
    return F.interpolate(low, size, mode="trilinear", align_corners=False)[0]


def blur(view: Tensor, sigma: float) -> Tensor:
    """Blur a view (C, D, H, W) by a separable Gaussian of `sigma` voxels, cut at three sigmas, borders repeated."""
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


def _noise(view: Tensor, deviation: float, rician: bool, generator: torch.Generator | None) -> Tensor:
    """Add Gaussian noise, or a magnitude image's (Gudbjartsson & Patz, 1995) about the view's lowest value."""

    def normal() -> Tensor:
        return torch.randn(view.shape, generator=generator, device=view.device, dtype=view.dtype) * deviation

    if not rician:
        return view + normal()
    floor = view.amin((1, 2, 3), keepdim=True)
    return torch.sqrt((view - floor + normal()).square() + normal().square()) + floor
