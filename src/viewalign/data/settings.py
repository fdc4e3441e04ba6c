"""How much one file may ask for, in voxels and seconds. What asks for more is set aside and stops nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from viewalign.data.readers.headers import MAX_VOXELS
from viewalign.utils.memory import memory_bytes

BASE_BYTES = 600_000_000
COPIES = 6
"""A worker needs at most `BASE_BYTES + COPIES × 4 × voxels` bytes (tests/data/test_scale.py)."""
DEFAULT_SECONDS = 900.0


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Attributes:
        seconds: how long it may take, reading and writing included; None for ever.
        max_voxels: voxels before and after resampling, all frames together.
    """

    seconds: float | None = DEFAULT_SECONDS
    max_voxels: int = MAX_VOXELS


def voxels_that_fit(memory: int | None = None) -> int:
    """Return the largest image, in voxels, whose preparation fits into `memory` bytes (default: this machine's)."""
    memory = memory_bytes() if memory is None else memory
    return max(1, min(MAX_VOXELS, (memory - BASE_BYTES) // (COPIES * 4)))


def worker_bytes(voxels: int) -> int:
    """Return the memory that preparing an image of so many voxels needs at most."""
    return BASE_BYTES + COPIES * 4 * voxels


RECIPE_VERSION = 3
"""Raised whenever the same settings would give other voxels; a store of another version is not added to."""

Normalisation = Literal["zscore", "foreground", "percentile", "window", "none"]
Interpolation = Literal["linear", "cubic"]
NumberType = Literal["float32", "float16", "int16"]
Frames = Literal["refuse", "channels", "volumes"]

_GUARDS = {"fill_nonfinite", "labels"}
"""Settings that decide which images are let in and change none that came in without them."""


class PrepareSettings(BaseModel):
    """Settings of `viewalign prepare`; unknown keys are refused.

    Attributes:
        spacing: target voxel size in mm in array order (D, H, W), or None to keep each image's own.
        interpolation: `linear`, or `cubic` for the B-spline of order 3 that nnssl and nnU-Net use.
        normalise: `zscore` with mean and deviation of the whole non-zero crop (as nnssl and nnU-Net), `foreground` with
            those of its non-zero voxels alone, `percentile` clips at `percentiles` and then does as `zscore`,
            `window` clips at `window` and maps it to [−1, 1], or `none`.
        percentiles: lower and upper percentile of the crop's voxels, for `percentile` alone.
        window: lowest and highest value, in Hounsfield units for CT, for `window` alone.
        frames: what becomes of an image of several frames (4-D): refused, one image with a channel a frame, or an image
            a frame.
        labels: include images that look like label maps by their voxels (`viewalign.data.content`).
        fill_nonfinite: write 0 in place of NaN and infinity instead of refusing the image.
        dtype: number type of the stored voxels; `int16` with a factor and an offset an image.
        view: (D, H, W) of the views that will be cut; chunks and blocks are sized for them. None suits 64 to 96.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    spacing: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    interpolation: Interpolation = "linear"
    normalise: Normalisation = "zscore"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    frames: Frames = "refuse"
    fill_nonfinite: bool = False
    labels: bool = False
    dtype: NumberType = Field(default="float32")
    view: tuple[int, int, int] | None = None

    @field_validator("spacing")
    @classmethod
    def _positive(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and not all(0.01 <= size <= 100.0 for size in value):
            raise ValueError(f"needs three voxel sizes between 0.01 and 100 mm, not {value}")
        return value

    @field_validator("view")
    @classmethod
    def _sensible(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if value is not None and not all(8 <= size <= 1024 for size in value):
            raise ValueError(f"needs three sizes between 8 and 1024 voxels, not {value}")
        return value

    @field_validator("percentiles")
    @classmethod
    def _percent(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 <= value[0] < value[1] <= 100.0:
            raise ValueError(f"needs two percentiles, 0 ≤ low < high ≤ 100, not {value}")
        return value

    @model_validator(mode="after")
    def _window_is_used(self) -> PrepareSettings:
        if (self.window is not None) != (self.normalise == "window"):
            raise ValueError("normalise=window and a window LOW,HIGH belong together; give both or neither")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"a window needs LOW < HIGH, not {self.window}")
        return self

    def essence(self) -> dict[str, Any]:
        """Return what the stored bytes depend on: settings that are not in use and mere guards are left out."""
        unused = {"percentiles"} if self.normalise != "percentile" else set()
        return self.model_dump(mode="json", exclude=_GUARDS | unused)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change whenever the stored bytes of some image would."""
        essence = {"version": RECIPE_VERSION, **self.essence()}
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Return the settings in words, for a message."""
        words = [self._spacing_words(), self._normalise_words(), self.dtype]
        if self.frames != "refuse":
            words.append(f"4-D into {self.frames}")
        if self.view is not None:
            words.append("blocks for views of " + "×".join(map(str, self.view)))
        return ", ".join(words)

    def _spacing_words(self) -> str:
        if self.spacing is None:
            return "own spacing"
        size = "×".join(f"{size:g}" for size in self.spacing) + " mm"
        return size if self.interpolation == "linear" else f"{size} {self.interpolation}"

    def _normalise_words(self) -> str:
        ends = {"percentile": self.percentiles, "window": self.window}.get(self.normalise)
        return f"normalise {self.normalise}" + (f" {ends[0]:g} to {ends[1]:g}" if ends else "")


def diff_preparation(made_with: PrepareSettings, wanted: PrepareSettings) -> str:
    """Say in words which settings of two recipes differ: `spacing [1, 1, 1] there, null asked for`."""
    there, asked = made_with.essence(), wanted.essence()
    return "; ".join(
        f"{key} {json.dumps(there.get(key))} there, {json.dumps(asked.get(key))} asked for"
        for key in PrepareSettings.model_fields
        if there.get(key) != asked.get(key)
    )
