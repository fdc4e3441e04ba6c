"""How images are prepared: the settings of a store, their version and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

RECIPE_VERSION = 1
"""Raised whenever the same settings would give other voxels; a store of another version is not added to."""

Normalisation = Literal["zscore", "foreground", "none"]


class PrepareSettings(BaseModel):
    """Settings of `viewalign prepare`; unknown keys are refused.

    Attributes:
        spacing: target voxel size in mm in array order (D, H, W), or None to keep each image's own.
        normalise: `zscore` with mean and deviation of the whole non-zero crop (as nnssl and nnU-Net), `foreground` with
            those of its non-zero voxels alone, or `none`.
        fill_nonfinite: write 0 in place of NaN and infinity instead of refusing the image.
        dtype: number type of the stored voxels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    spacing: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    normalise: Normalisation = "zscore"
    fill_nonfinite: bool = False
    dtype: Literal["float32", "float16"] = Field(default="float32")

    @field_validator("spacing")
    @classmethod
    def _positive(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and not all(0.01 <= size <= 100.0 for size in value):
            raise ValueError(f"needs three voxel sizes between 0.01 and 100 mm, not {value}")
        return value

    def fingerprint(self) -> str:
        """Return 16 hex digits that change whenever the stored voxels of some image would.

        `fill_nonfinite` is left out: it decides which images are let in, and changes none that came in without it, so a
        store can be completed with `--fill-nonfinite` afterwards.
        """
        essence = {"version": RECIPE_VERSION, **self.model_dump(mode="json", exclude={"fill_nonfinite"})}
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Return the settings in words, for a message."""
        spacing = "own spacing" if self.spacing is None else "×".join(f"{size:g}" for size in self.spacing) + " mm"
        return f"{spacing}, normalise {self.normalise}, {self.dtype}"
