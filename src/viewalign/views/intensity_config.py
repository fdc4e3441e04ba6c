"""Probabilities and ranges of intensity transforms; no torch is imported, so that settings load fast."""

from __future__ import annotations

from pydantic import Field

from viewalign.utils.settings import Fraction, FractionRange, NotNegativeRange, PositiveRange, Settings


class IntensityConfig(Settings):
    """Intensity transforms, sampled for each view.

    Brightness, contrast and gamma are applied before the reconstruction target is taken; low resolution, blur and noise
    after.
    """

    p_brightness: Fraction = Field(0.15, description="Probability of a brightness transform.")
    brightness: NotNegativeRange = Field((0.75, 1.25), description="Range of the brightness factor.")
    p_contrast: Fraction = Field(0.15, description="Probability of a contrast transform.")
    contrast: NotNegativeRange = Field((0.75, 1.25), description="Range of the contrast factor.")
    p_gamma: Fraction = Field(0.3, description="Probability of a gamma transform.")
    p_gamma_inverted: Fraction = Field(0.1, description="Probability of a gamma transform of the inverted image.")
    gamma: PositiveRange = Field((0.7, 1.5), description="Range of the exponent of both gamma transforms.")
    p_low_resolution: Fraction = Field(0.1, description="Probability of a simulated lower resolution.")
    low_resolution: FractionRange = Field((0.5, 1.0), description="Range of the factor of the simulated resolution.")
    p_blur: Fraction = Field(0.2, description="Probability of a Gaussian blur.")
    blur_sigma: PositiveRange = Field((0.5, 1.0), description="Range of the blur's standard deviation in voxels.")
    p_noise: Fraction = Field(0.1, description="Probability of Gaussian or Rician noise.")
    noise_variance: NotNegativeRange = Field(
        (0.0, 0.1), description="Range of the noise variance, in normalised intensity squared."
    )
