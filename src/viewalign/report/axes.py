"""Scales and ticks of the page's charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from viewalign.report.read import Series


@dataclass(frozen=True)
class Scale:
    """A map from values [low, high] to pixels [start, stop], linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; values past the ends stay at them."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.start + (self.stop - self.start) * (at - low) / (high - low)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers in [low, high], about `count` of them, 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / max(count, 1)
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return the range of values with some room at either end; zero stays the floor where it is near."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 1.0
    floor = low - room
    return (0.0 if floor < 0 <= low or 0 < low < 0.35 * high else floor), high + room


@dataclass(frozen=True)
class Thinned:
    """A series in few enough points to draw: the mean, lowest and highest value of each stretch of steps."""

    steps: tuple[float, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    stretch: int


def thin(series: Series, most: int = 240) -> Thinned:
    """Join neighbouring values until at most `most` are left; values must be finite."""
    stretch = max(1, math.ceil(len(series) / most))
    parts = [slice(k, k + stretch) for k in range(0, len(series), stretch)]
    values = [series.values[part] for part in parts]
    steps = [series.steps[part] for part in parts]
    return Thinned(
        tuple(sum(part) / len(part) for part in steps),
        tuple(sum(part) / len(part) for part in values),
        tuple(min(part) for part in values),
        tuple(max(part) for part in values),
        stretch,
    )
