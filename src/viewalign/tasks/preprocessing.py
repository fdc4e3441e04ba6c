"""Preprocess the images of a case into the tensor used by training, evaluation, embedding, prediction and export.

The steps of `viewalign prepare` (`data.preprocessing`) are applied to all channels together: orient, crop to non-zero
voxels of any channel, resample, normalise each channel. Then a field of view of fixed size is cut around the centre of
the mask, or of the crop. A preprocessor consists of plain values and is stored with each model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from viewalign.data.grids import grid_difference, resample_to
from viewalign.data.image_fingerprint import parse_fingerprint
from viewalign.data.preprocessing import prepare_channels
from viewalign.data.readers.files import Volume, read_mask, read_volume
from viewalign.data.settings import PrepareSettings
from viewalign.errors import ExcludedImageError, UserError
from viewalign.tasks.manifest import check_images
from viewalign.tasks.spec import ChannelSpec, TaskSpec

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int, int]
Frames = Literal["same", "resample"]
VERSION = 1
"""Increased whenever the same settings would give other tensors."""


@dataclass(frozen=True)
class Sample:
    """A preprocessed case.

    Attributes:
        image: float32 (C, D, H, W) in the field of view; 0 outside the volume and in missing channels.
        valid: bool (1, D, H, W), false outside the volume.
        present: bool (C,), false for missing channels.
        fingerprint: of the first channel (`data.image_fingerprint`), to find copies; empty for none.
    """

    image: NDArray[np.float32]
    valid: NDArray[np.bool_]
    present: NDArray[np.bool_]
    fingerprint: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, dtype=np.int8))


@dataclass(frozen=True)
class Preprocessor:
    """Converts image files to a `Sample`.

    Attributes:
        channels: input channels in order.
        size: field of view (D, H, W) in voxels.
        settings: orientation, spacing and normalisation, as for pretraining.
        strip: set voxels outside the mask to 0 first; `normalise: foreground` then uses statistics of the mask.
        frames: `same` rejects channels on different voxel grids, `resample` resamples them to the first channel's grid.
    """

    channels: tuple[ChannelSpec, ...]
    size: Size
    settings: PrepareSettings = field(default_factory=PrepareSettings)
    strip: bool = False
    frames: Frames = "same"

    def __call__(self, images: Mapping[str, Path], mask: Path | None = None) -> Sample:
        """Preprocess a case.

        Args:
            images: files by channel name or alias; other names are ignored.
            mask: on the voxel grid of the first available channel; required for `strip`.

        Raises:
            ExcludedImageError: a file that cannot be used.
        """
        chosen = {c.name: word for c in self.channels for word in reversed(c.words) if word in images}
        check_images(images, TaskSpec(name="-", kind="regression", channels=self.channels))
        if not chosen:
            raise ExcludedImageError(f"has no image of {', '.join(channel.name for channel in self.channels)}")
        volumes = self._volumes({name: images[word] for name, word in chosen.items()})
        region = None if mask is None else _read_region(mask, next(iter(volumes.values())))
        if self.strip:
            if region is None:
                raise ExcludedImageError("has no mask, which strip=true needs")
            volumes = {name: replace(volume, array=volume.array * region) for name, volume in volumes.items()}
        masks = {} if region is None else {"anatomy": region}
        prepared = prepare_channels(list(volumes.values()), self.settings, masks)
        sample = self._field_of_view(prepared.array, list(volumes), prepared.masks.get("anatomy"))
        return replace(sample, fingerprint=parse_fingerprint(prepared.properties["fingerprint"]))

    def _volumes(self, files: Mapping[str, Path]) -> dict[str, Volume]:
        volumes: dict[str, Volume] = {}
        for name, path in files.items():
            try:
                volume = read_image(path, self.settings.fill_nonfinite)
            except UserError as problem:
                raise ExcludedImageError(f"{path.name}: {problem}") from None
            first = next(iter(volumes.values()), volume)
            difference = grid_difference(volume, first)
            if difference and self.frames == "same":
                raise ExcludedImageError(
                    f"{path.name} is on another voxel grid than {next(iter(volumes))}: {difference}"
                )
            volumes[name] = resample_to(volume, first) if difference else volume
        return volumes

    def _field_of_view(self, array: NDArray[Any], names: Sequence[str], region: NDArray[np.uint8] | None) -> Sample:
        present = np.array([channel.name in names for channel in self.channels])
        image = np.zeros((len(present), *array.shape[1:]), dtype=np.float32)
        image[present] = array[[names.index(channel.name) for channel in self.channels if channel.name in names]]
        middle = centre(region, array.shape[1:])
        starts = [floor(c - (side - 1) / 2 + 0.5) for c, side in zip(middle, self.size, strict=True)]
        valid = np.ones((1, *array.shape[1:]), dtype=bool)
        return Sample(window(image, starts, self.size), window(valid, starts, self.size), present)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return {
            "version": VERSION,
            "channels": [channel.model_dump(mode="json") for channel in self.channels],
            "size": list(self.size),
            "settings": self.settings.model_dump(mode="json"),
            "strip": self.strip,
            "frames": self.frames,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Preprocessor:
        """Restore a preprocessor from `as_json`.

        Raises:
            UserError: it was written by a version that preprocesses differently.
        """
        if tree.get("version") != VERSION:
            raise UserError(
                f"The model's preprocessing has version {tree.get('version')}; this viewalign supports {VERSION}."
            )
        d, h, w = tree["size"]
        channels = tuple(ChannelSpec.model_validate(channel) for channel in tree["channels"])
        settings = PrepareSettings.model_validate(tree["settings"])
        return cls(channels, (d, h, w), settings, bool(tree["strip"]), tree["frames"])

    def fingerprint(self) -> str:
        """Return 16 hex digits that change whenever the tensor of some case would."""
        tree = {**self.as_json(), "settings": self.settings.fingerprint()}
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def read_image(path: Path, fill_nonfinite: bool = False) -> Volume:
    """Read an image of any supported format, or a prepared array (1, D, H, W) in `.b2nd` with 1 mm voxels.

    Raises:
        ExcludedImageError: it cannot be used.
    """
    return _read_array(path) if path.suffix == ".b2nd" else read_volume(path, fill_nonfinite)


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
        raise ExcludedImageError("the array contains values that are not finite")
    return Volume(array, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))


def _read_region(mask: Path, first: Volume) -> NDArray[np.uint8]:
    region = (read_mask(mask, first) > 0).astype(np.uint8)
    if not region.any():
        raise ExcludedImageError(f"the mask {mask.name} is empty")
    return region


def centre(region: NDArray[np.uint8] | None, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the centre of mass (3,) of a mask in voxel indices, or the centre of the array."""
    if region is None or not region.any():
        return (np.array(shape, dtype=np.float64) - 1) / 2
    counts = [region.sum(axis=tuple(k for k in range(3) if k != axis), dtype=np.float64) for axis in range(3)]
    return np.array([float((line * np.arange(len(line))).sum() / line.sum()) for line in counts])


def window(array: NDArray[Any], starts: Sequence[int], size: Size) -> NDArray[Any]:
    """Crop a box (C, *size) that begins at `starts` from an array (C, D, H, W), padded with 0 or false."""
    out = np.zeros((array.shape[0], *size), dtype=array.dtype)
    source, target = [], []
    for start, side, length in zip(starts, size, array.shape[1:], strict=True):
        low, high = max(start, 0), max(start, 0, min(start + side, length))
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    if all(part.stop > part.start for part in source):
        out[(slice(None), *target)] = array[(slice(None), *source)]
    return out


def sample_tensors(sample: Sample, device: str) -> tuple[Tensor, Tensor]:
    """Return image (1, C, D, H, W) and valid voxels (1, 1, D, H, W) of a sample on a device."""
    import torch  # here, so that worker processes load without it

    image, valid = (torch.from_numpy(np.array(part))[None].to(device) for part in (sample.image, sample.valid))
    return image, valid
