"""A case's files → the one tensor that training, validation, embedding, prediction and export see.

The steps are those of `viewalign prepare` (`volumes.preparing`), on all channels together: orient, crop to what is not
zero in any channel, resample, normalise each channel. Then a field of view of fixed size is cut about the centre of the
mask, or of the crop. A preprocessor is plain data, and is kept beside every model that was trained behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.data.preprocessing import prepare_channels
from viewalign.data.readers.files import Volume, read_mask, read_volume
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings
from viewalign.errors import ExcludedImageError, UserError
from viewalign.tasks.manifest import check_images
from viewalign.tasks.spec import ChannelSpec, TaskSpec

Size = tuple[int, int, int]
Frames = Literal["same", "resample"]
VERSION = 1
"""Raised whenever the same preprocessor would give other tensors."""


@dataclass(frozen=True)
class Sample:
    """A case as a network sees it.

    Attributes:
        image: float32 (C, D, H, W) of the field of view; 0 beyond the volume and in channels that are missing.
        valid: bool (1, D, H, W), false beyond the volume.
        present: bool (C,), which channels the case has.
    """

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    present: NDArray[np.bool_]


@dataclass(frozen=True)
class Preprocessor:
    """How files become a tensor.

    Attributes:
        channels: in order, with aliases.
        size: the field of view (D, H, W) in voxels.
        settings: orientation, spacing and normalisation, as for pretraining.
        strip: set what is outside the mask to 0 first; with `normalise: foreground` statistics are then the mask's.
        frames: `same` refuses channels that do not share their voxels, `resample` brings them to the first one's.
    """

    channels: tuple[ChannelSpec, ...]
    size: Size
    settings: PrepareSettings = field(default_factory=PrepareSettings)
    strip: bool = False
    frames: Frames = "same"

    def __call__(self, images: Mapping[str, Path], mask: Path | None = None) -> Sample:
        """Prepare a case.

        Args:
            images: files by channel name or alias; names that are no channel of the task are not looked at.
            mask: on the voxels of the first channel that is there; needed for `strip`.

        Raises:
            RefusedImageError: what cannot be used, with the file's name.
        """
        chosen = {c.name: word for c in self.channels for word in reversed((c.name, *c.aliases)) if word in images}
        check_images(images, TaskSpec(name="-", kind="regression", channels=self.channels))
        if not chosen:
            raise ExcludedImageError(f"has no image of {', '.join(channel.name for channel in self.channels)}")
        volumes = self._volumes({name: images[word] for name, word in chosen.items()})
        first = next(iter(volumes.values()))
        region = None if mask is None else _read_region(mask, first)
        if self.strip:
            volumes = {name: _stripped(volume, region) for name, volume in volumes.items()}
        masks = {} if region is None else {"anatomy": region}
        prepared = prepare_channels(list(volumes.values()), self.settings, masks)
        return self._field_of_view(prepared.array, list(volumes), prepared.masks.get("anatomy"))

    def _volumes(self, files: Mapping[str, Path]) -> dict[str, Volume]:
        volumes: dict[str, Volume] = {}
        for name, path in files.items():
            try:
                volume = read_image(path, self.settings.fill_nonfinite)
            except UserError as problem:
                raise ExcludedImageError(f"{path.name}: {problem}") from None
            first = next(iter(volumes.values()), volume)
            odd = frame_difference(volume, first)
            if odd and self.frames == "same":
                raise ExcludedImageError(f"{path.name} lies in another frame than {next(iter(volumes))}: {odd}")
            volumes[name] = onto(volume, first) if odd else volume
        return volumes

    def _field_of_view(self, array: NDArray[Any], there: Sequence[str], region: NDArray[np.uint8] | None) -> Sample:
        present = np.array([channel.name in there for channel in self.channels])
        whole = np.zeros((len(present), *array.shape[1:]), dtype=np.float32)
        whole[present] = array[[there.index(channel.name) for channel in self.channels if channel.name in there]]
        starts = [
            floor(middle - (side - 1) / 2 + 0.5)
            for middle, side in zip(centre(region, array.shape[1:]), self.size, strict=True)
        ]
        valid = np.ones((1, *array.shape[1:]), dtype=bool)
        return Sample(window(whole, starts, self.size), window(valid, starts, self.size), present)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, for a checkpoint."""
        return {
            "version": VERSION,
            "channels": [channel.model_dump(mode="json") for channel in self.channels],
            "size": list(self.size),
            "settings": self.settings.model_dump(mode="json"),
            "strip": self.strip,
            "frames": self.frames,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Preprocessor:
        """Make one again from what `as_json` gave.

        Raises:
            UserError: it is of a newer version, whose tensors this one would not give.
        """
        if told.get("version") != VERSION:
            raise UserError(
                f"This model's preprocessing is of version {told.get('version')}; this viewalign has {VERSION}."
            )
        d, h, w = told["size"]
        channels = tuple(ChannelSpec.model_validate(channel) for channel in told["channels"])
        settings = PrepareSettings.model_validate(told["settings"])
        return cls(channels, (d, h, w), settings, bool(told["strip"]), told["frames"])

    def fingerprint(self) -> str:
        """Return 16 hex digits that change whenever some case's tensor would."""
        told = {**self.as_json(), "settings": self.settings.fingerprint()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def resized(self, size: Size) -> Preprocessor:
        """Return the same with another field of view."""
        return replace(self, size=size)


def read_image(path: Path, fill_nonfinite: bool = False) -> Volume:
    """Read an image of any kind that `volumes.reading` knows, or a prepared array (1, D, H, W) in `.b2nd` at 1 mm.

    Raises:
        RefusedImageError: it cannot be used.
    """
    if path.suffix == ".b2nd":
        return _read_array(path)
    return read_volume(path, fill_nonfinite)


def _read_array(path: Path) -> Volume:
    import blosc2

    try:
        array = np.asarray(blosc2.open(str(path), mode="r")[...], dtype=np.float32)
    except (OSError, RuntimeError, ValueError) as problem:
        raise ExcludedImageError(f"the array cannot be read: {problem}") from None
    array = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
    if array.ndim != 3:
        raise ExcludedImageError(f"the array has the shape {array.shape}, not (1, D, H, W)")
    if not np.isfinite(array).all():
        raise ExcludedImageError("the array holds numbers that are not finite")
    return Volume(array, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))


def frame_difference(volume: Volume, first: Volume) -> str:
    """Say in what the voxels of two images differ: nothing, size, voxel size, direction or origin."""
    if volume.array.shape != first.array.shape:
        return "×".join(map(str, volume.array.shape)) + " voxels instead of " + "×".join(map(str, first.array.shape))
    if not np.allclose(volume.spacing, first.spacing, rtol=1e-2):
        return "another voxel size"
    if not np.allclose(volume.direction, first.direction, atol=1e-2):
        return "another direction"
    shift = float(np.linalg.norm(np.subtract(volume.origin, first.origin)))
    return f"moved by {shift:.1f} mm" if shift > 0.5 * min(first.spacing) else ""


def onto(volume: Volume, first: Volume) -> Volume:
    """Resample an image linearly to the voxels of another; 0 beyond it."""
    moved = sitk.Resample(
        itk_image(volume), itk_image(first), sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear, 0.0
    )
    array = np.array(sitk.GetArrayViewFromImage(moved), dtype=np.float32)
    if not array.any():
        raise ExcludedImageError("one channel does not overlap another")
    return replace(first, array=array, filled=volume.filled)


def itk_image(volume: Volume) -> Any:
    """Return a volume as SimpleITK's image."""
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing[::-1])
    image.SetOrigin(volume.origin)
    image.SetDirection(np.asarray(volume.direction, dtype=float).ravel().tolist())
    return image


def _read_region(mask: Path, first: Volume) -> NDArray[np.uint8]:
    region = (read_mask(mask, first) > 0).astype(np.uint8)
    if not region.any():
        raise ExcludedImageError(f"the mask {mask.name} is empty")
    return region


def _stripped(volume: Volume, region: NDArray[np.uint8] | None) -> Volume:
    if region is None:
        raise ExcludedImageError("has no mask, but preprocessing strips what is outside one")
    return replace(volume, array=volume.array * region)


def centre(region: NDArray[np.uint8] | None, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the mask's centre of mass as an index, or the middle of the array."""
    if region is None or not region.any():
        return (np.array(shape, dtype=np.float64) - 1) / 2
    counts = [region.sum(axis=tuple(k for k in range(3) if k != axis), dtype=np.float64) for axis in range(3)]
    return np.array([float((line * np.arange(len(line))).sum() / line.sum()) for line in counts])


def window(array: NDArray[Any], starts: Sequence[int], size: Size) -> NDArray[Any]:
    """Cut a box (C, *size) that begins at `starts` out of (C, D, H, W); 0 or false beyond the array."""
    out = np.zeros((array.shape[0], *size), dtype=array.dtype)
    source, target = [], []
    for start, side, length in zip(starts, size, array.shape[1:], strict=True):
        low, high = max(start, 0), min(start + side, length)
        source.append(slice(low, max(low, high)))
        target.append(slice(low - start, max(low, high) - start))
    if all(part.stop > part.start for part in source):
        out[(slice(None), *target)] = array[(slice(None), *source)]
    return out


def sample_tensors(sample: Sample, device: str) -> tuple[Tensor, Tensor]:
    """Return a case's image (1, C, D, H, W) and its valid voxels (1, 1, D, H, W) on a device."""
    image, valid = (torch.from_numpy(np.array(part))[None].to(device) for part in (sample.image, sample.valid))
    return image, valid
