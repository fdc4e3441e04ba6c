"""Voxels in fewer bits, and the resulting error.

float16 keeps three digits; int16 spreads 65,535 steps evenly over an image's range, with a factor and an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.settings import NumberType
from viewalign.errors import ExcludedImageError

_STEPS = 32767


@dataclass(frozen=True)
class Quantization:
    """Conversion of stored numbers to values, `value = stored · scale + offset`, and its error.

    Attributes:
        scale, offset: as above; 1 and 0 for floating-point numbers.
        largest_error, rms_error: in the units of the values (standard deviations of an image that was z-scored).
    """

    scale: float = 1.0
    offset: float = 0.0
    largest_error: float = 0.0
    rms_error: float = 0.0


def quantize(array: NDArray[np.float32], dtype: NumberType) -> tuple[NDArray[Any], Quantization]:
    """Return an array (D, H, W) in another number type, and its conversion.

    Raises:
        ExcludedImageError: its values do not fit.
    """
    if dtype == "float32":
        _check_finite([array.min(), array.max()], dtype)
        return np.ascontiguousarray(array), Quantization()
    if dtype == "float16":
        with np.errstate(over="ignore"):
            packed: NDArray[Any] = array.astype(np.float16)
        _check_finite([packed.min(), packed.max()], dtype)
        return packed, Quantization(1.0, 0.0, *_errors(array, packed, 1.0, 0.0))
    scale, offset = _steps(array)
    packed = np.empty(array.shape, dtype=np.int16)
    for plane, target in zip(array, packed, strict=True):
        # The offset is rounded, so that the ends of an image far from zero may be beyond int16, and would wrap around.
        target[...] = np.clip(np.rint((plane - np.float32(offset)) * np.float32(1 / scale)), -_STEPS - 1, _STEPS)
    packing = Quantization(scale, offset, *_errors(array, packed, scale, offset))
    _check_finite([packing.largest_error], dtype)  # the largest numbers of float32 would come back as infinity
    return packed, packing


def dequantize(stored: NDArray[Any], scale: NDArray[np.float32], offset: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the float32 values of stored integers (C, d, h, w), with factor and offset per channel."""
    values = stored.astype(np.float32)
    values *= scale[:, None, None, None]
    values += offset[:, None, None, None]
    return values


def _steps(array: NDArray[np.float32]) -> tuple[float, float]:
    """Return factor and offset; integers that fit are kept unchanged."""
    low, high = float(array.min()), float(array.max())
    _check_finite([low, high], "int16")
    if low >= -_STEPS and high <= _STEPS and all(np.array_equal(plane, np.rint(plane)) for plane in array):
        return 1.0, 0.0
    # Rounded to float32 here, so that writer and reader use the same numbers.
    scale = float(np.float32(max((high - low) / (2 * _STEPS), float(np.finfo(np.float32).tiny))))
    return scale, float(np.float32((high + low) / 2))


def _errors(array: NDArray[np.float32], packed: NDArray[Any], scale: float, offset: float) -> tuple[float, float]:
    """Return the largest and the root mean square error after reading back, computed plane by plane."""
    largest, squares = 0.0, 0.0
    for plane, stored in zip(array, packed, strict=True):
        with np.errstate(over="ignore"):
            difference = (stored.astype(np.float32) * np.float32(scale) + np.float32(offset)) - plane
        largest = max(largest, float(np.abs(difference).max()))
        squares += float(np.square(difference, dtype=np.float64).sum())
    return largest, float(np.sqrt(squares / array.size))


def _check_finite(ends: list[Any], dtype: str) -> None:
    if not np.isfinite(ends).all():
        raise ExcludedImageError(f"its values do not fit into {dtype}")
