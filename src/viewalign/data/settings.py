"""Settings of `index`, `prepare` and `fetch`, and limits of what one file may cost: one beyond them is excluded."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from viewalign.data.readers.headers import MAX_VOXELS
from viewalign.utils.memory import memory_bytes
from viewalign.utils.settings import FilePaths, Names, Number, PathOrName, Range, Settings, as_triple

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
Frames = Literal["exclude", "channels", "volumes"]
_Voxel = Annotated[float, Field(ge=0.01, le=100.0)]
_Side = Annotated[int, Field(ge=8, le=1024)]


def _as_spacing(value: object) -> object:
    return None if value in (None, "none") else as_triple(value)


_EXCLUDE = (
    "Lists of images to leave out: tables with a column `file`, such as an edited catalogue.audit.tsv, or texts with a "
    "file per line. `prepare` also takes them out of the index of an existing store; their files are kept."
)
_GUARDS = {"fill_nonfinite", "labels"}
"""Settings that decide which images are let in and change none that came in without them."""


class PrepareSettings(Settings):
    """What is stored."""

    spacing: Annotated[tuple[_Voxel, _Voxel, _Voxel] | None, BeforeValidator(_as_spacing)] = Field(
        (1.0, 1.0, 1.0), description="Voxel size in mm along (D, H, W); `none` keeps each image's own."
    )
    interpolation: Interpolation = Field("linear", description="cubic: B-splines of order 3, as nnssl and nnU-Net.")
    normalise: Normalisation = Field(
        "zscore",
        description="zscore: mean and deviation over the whole crop (as nnssl and nnU-Net); foreground: over its "
        "non-zero voxels; percentile: clipped at `percentiles`, then zscore; window: clipped at `window` and mapped to "
        "-1..1; none.",
    )
    percentiles: Range = Field((0.5, 99.5), description="Where `normalise=percentile` clips, in percent of the voxels.")
    window: Range | None = Field(
        None,
        description="Lowest and highest value for `normalise=window`; for CT in Hounsfield units: [-1000,1000].",
    )
    frames: Frames = Field(
        "exclude", description="Images of several frames (4-D): excluded, a channel per frame, or a volume per frame."
    )
    channels: Names = Field(
        (),
        description="Modalities that are the channels of one image per session, in this order: [T1w,T1ce,T2w,FLAIR]. "
        "Their files must share a voxel grid. Empty: every file is an image.",
    )
    fill_nonfinite: bool = Field(False, description="Write 0 in place of NaN and infinity; else the image is excluded.")
    labels: bool = Field(False, description="Store images that look like label maps by their voxels; else excluded.")
    suv: bool = Field(
        False,
        description="Store PET in standardised uptake values (body weight); excluded if its header lacks data.",
    )
    dtype: NumberType = Field(
        "float32", description="Type of the stored voxels; the report gives the rounding error of the 16-bit ones."
    )
    patch_size: Annotated[tuple[_Side, _Side, _Side], BeforeValidator(as_triple)] | None = Field(
        None, description="Size (D, H, W) in voxels of the views that will be read; blocks fit it. null suits 64 to 96."
    )

    @field_validator("percentiles")
    @classmethod
    def _percent(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 <= value[0] < value[1] <= 100.0:
            raise ValueError(f"needs two percentiles, 0 ≤ low < high ≤ 100, not {value}")
        return value

    @model_validator(mode="after")
    def _window_is_used(self) -> PrepareSettings:
        if (self.window is not None) != (self.normalise == "window"):
            raise ValueError("normalise=window and window=[LOW,HIGH] belong together; write both or neither")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError(f"a window needs LOW < HIGH, not {list(self.window)}")
        return self

    @model_validator(mode="after")
    def _channels_are_files(self) -> PrepareSettings:
        if self.channels and self.frames != "exclude":
            raise ValueError(f"channels= stacks files of one frame; leave out frames={self.frames}")
        if len({name.casefold() for name in self.channels}) < len(self.channels):
            raise ValueError(f"channels= has a modality twice: {', '.join(self.channels)}")
        return self

    def essence(self) -> dict[str, Any]:
        """Return what the stored bytes depend on: settings that are not in use and mere guards are left out."""
        unused = {"percentiles"} if self.normalise != "percentile" else set()
        unused |= {name for name in ("suv", "channels") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=_GUARDS | unused)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change whenever the stored bytes of some image would."""
        essence = {"version": RECIPE_VERSION, **self.essence()}
        return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Return the settings in words, for a message."""
        words = [self._spacing_words(), self._normalise_words(), self.dtype]
        if self.suv:
            words.append("PET in SUV")
        if self.frames != "exclude":
            words.append(f"4-D into {self.frames}")
        if self.channels:
            words.append(f"channels {', '.join(self.channels)}")
        if self.patch_size is not None:
            words.append("blocks for views of " + "×".join(map(str, self.patch_size)))
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
    """Say in words which settings of two recipes differ: `spacing [1, 1, 1] there, null requested`."""
    there, asked = made_with.essence(), wanted.essence()
    return "; ".join(
        f"{key} {json.dumps(there.get(key))} there, {json.dumps(asked.get(key))} requested"
        for key in PrepareSettings.model_fields
        if there.get(key) != asked.get(key)
    )


class PrepareOptions(PrepareSettings):
    """How the work is done."""

    spacing: Literal["median"] | Annotated[tuple[_Voxel, _Voxel, _Voxel] | None, BeforeValidator(_as_spacing)] = Field(  # type: ignore[assignment]
        (1.0, 1.0, 1.0),
        description="Voxel size in mm along (D, H, W); `median` of the catalogue, or `none` to keep each image's own.",
    )
    workers: Number | None = Field(
        None, description="Processes; 0 works in this one, without time limit. null: one per core."
    )
    shard: str = Field(
        "1/1", description="i/n does the i-th of n parts, as in an array job; the last part to end completes the store."
    )
    scheduler: PathOrName | None = Field(
        None, description="Let a Dask cluster do the work: its scheduler, tcp://host:8786, or its file."
    )
    time_limit: Annotated[float, Field(ge=1.0)] = Field(
        DEFAULT_SECONDS, description="Seconds that one file may take; files that take longer are excluded."
    )
    max_voxels: Annotated[int, Field(ge=8)] | None = Field(
        None, description="Exclude larger images, before or after resampling. null: what this machine's memory allows."
    )
    exclude: FilePaths = Field((), description=_EXCLUDE)

    def settings(self, spacing: tuple[float, float, float] | None) -> PrepareSettings:
        """Return what is stored, with the spacing that `median` came to."""
        stored = {name: getattr(self, name) for name in PrepareSettings.model_fields}
        return PrepareSettings.model_validate({**stored, "spacing": spacing})

    def limits(self) -> Limits:
        """Return what one file may cost."""
        return Limits(self.time_limit, self.max_voxels or voxels_that_fit())


class IndexSettings(Settings):
    """What is indexed."""

    subject_pattern: str | None = Field(
        None,
        description="Regular expression searched in a file's path below its source, with any of the named groups "
        "subject, session and modality, such as (?P<subject>P\\d+)_(?P<session>v\\d).",
    )
    labels: bool = Field(False, description="Index label maps too (…_seg, …_mask, labelsTr/).")
    frames: bool = Field(False, description="Index 4-D NIfTI too; `frames` of prepare decides what is stored of it.")
    exclude: FilePaths = Field((), description=_EXCLUDE)
    workers: Number | None = Field(
        None, description="Processes that read headers; 0 works in this one. null: one per core from 500 files on."
    )

    @field_validator("subject_pattern")
    @classmethod
    def _has_groups(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        if not set(groups) & {"subject", "session", "modality"}:
            raise ValueError("has no group named subject, session or modality, such as (?P<subject>…)")
        return value


class FetchSettings(Settings):
    """What is downloaded."""

    pattern: Names = Field((), description="Which files of a repository on the Hub, as 'OpenMind/ds001486/*'.")
