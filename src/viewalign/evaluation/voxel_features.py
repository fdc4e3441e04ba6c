"""Features of single voxels: feature maps of a frozen encoder, or blurred intensities as a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.utils.shapes import spatial_size
from viewalign.views.affines import identity
from viewalign.views.alignment import sample, volume_to_grid
from viewalign.views.resampling import resample
from viewalign.weights.encoder import Encoder

Size = tuple[int, int, int]
Voxels = NDArray[np.int64]
Rows = NDArray[np.float32]


class FeatureReader(Protocol):
    """Computes features of voxels."""

    def __call__(self, image: NDArray[np.float32], voxels: Voxels) -> Rows:
        """Return features (P, C) of voxels (P, 3), indices in (D, H, W) order, of an image (D, H, W)."""


class EncoderFeatures:
    """All feature maps of a frozen encoder, interpolated at voxels and concatenated.

    The image is processed in half-overlapping tiles of the training view size. A voxel's features are a mean over its
    tiles, weighted by the distance to their borders. A whole volume at once would be faster for a CNN, but would change
    the statistics of its instance normalisation.

    Args:
        encoder: from `load_encoder`.
        device: where it runs.
        batch: number of tiles at a time.
    """

    def __init__(self, encoder: Encoder, device: torch.device | str = "cpu", batch: int = 8) -> None:
        self._encoder, self._device, self._batch = encoder.eval().to(device), torch.device(device), batch
        self._size: Size = encoder.size

    @torch.no_grad()
    def __call__(self, image: NDArray[np.float32], voxels: Voxels) -> Rows:
        """Return features (P, ΣC) of voxels (P, 3) of an image (D, H, W) that is prepared as in pretraining."""
        volume = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
        tiles = list(tiles_with_voxels((image.shape[0], image.shape[1], image.shape[2]), self._size, voxels))
        total = torch.zeros(len(voxels), 1)
        rows: Tensor | None = None
        for first in range(0, len(tiles), self._batch):
            chunk = tiles[first : first + self._batch]
            images = torch.stack([resample(volume, _translation(tile.start), self._size) for tile in chunk])
            maps = self._encoder(images.to(self._device)).maps
            for number, tile in enumerate(chunk):
                values = self._read([m[number : number + 1] for m in maps], voxels[tile.voxels] - tile.start)
                rows = torch.zeros(len(voxels), values.shape[1]) if rows is None else rows
                index, weight = torch.from_numpy(tile.voxels), torch.from_numpy(tile.weights)[:, None]
                rows[index] += weight * values
                total[index] += weight
        assert rows is not None, "every voxel is in a tile"
        return np.asarray((rows / total).numpy(), dtype=np.float32)

    def _read(self, maps: Sequence[Tensor], voxels: Voxels) -> Tensor:
        """Interpolate one tile's maps (1, C, d, h, w) at voxels (P, 3) of the tile."""
        points, still = torch.from_numpy(voxels).double()[None], identity(1)[None]
        columns = []
        for features in maps:
            where = volume_to_grid(points, still, self._size, spatial_size(features))[0]
            columns.append(sample(features, where.to(features.device))[0])
        return torch.cat(columns, dim=1).float().cpu()


class IntensityFeatures:
    """A voxel's intensity in the image and in Gaussian-blurred images.

    Args:
        sigmas: standard deviations of the blurs, in voxels.
    """

    def __init__(self, sigmas: Sequence[float] = (1.0, 2.0, 4.0)) -> None:
        self._sigmas = tuple(sigmas)

    def __call__(self, image: NDArray[np.float32], voxels: Voxels) -> Rows:
        """Return features (P, 1 + number of blurs) of voxels (P, 3) of an image (D, H, W)."""
        from scipy.ndimage import gaussian_filter

        where = tuple(voxels.T)
        blurred = [gaussian_filter(image, sigma)[where] for sigma in self._sigmas]
        return np.stack([image[where], *blurred], axis=1).astype(np.float32)


def tile_starts(length: int, side: int) -> NDArray[np.int64]:
    """Return the starts of tiles of `side` voxels along an axis: evenly spaced, overlapping by at least half.

    An axis shorter than a tile has one centred tile, with a negative start.
    """
    if length <= side:
        return np.array([-((side - length) // 2)], dtype=np.int64)
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return np.rint(np.linspace(0, length - side, count)).astype(np.int64)


@dataclass(frozen=True)
class Tile:
    """A tile of a volume and the requested voxels inside it.

    Attributes:
        start: its first voxel (3,), which may be outside the volume.
        voxels: indices (K,) of requested voxels.
        weights: float32 (K,), 1 in the middle, decreasing linearly towards the faces, multiplied over axes.
    """

    start: Voxels
    voxels: NDArray[np.int64]
    weights: NDArray[np.float32]


def tiles_with_voxels(shape: Size, size: Size, voxels: Voxels) -> Iterator[Tile]:
    """Yield the tiles of a volume that contain any of the voxels (P, 3)."""
    for start in product(*(tile_starts(n, side) for n, side in zip(shape, size, strict=True))):
        # Distances are relative to the outer faces, so that the outermost voxels have small positive weights.
        away = np.abs(voxels - start - (np.array(size) - 1) / 2) / (np.array(size) / 2)
        inside = np.flatnonzero((away < 1).all(axis=1))
        if len(inside):
            weights = (1 - away[inside]).prod(axis=1)
            yield Tile(np.array(start, dtype=np.int64), inside, weights.astype(np.float32))


def _translation(start: Voxels) -> Tensor:
    """Return the affine (3, 4) that maps voxel 0 of a tile to voxel `start` of the volume."""
    return torch.cat([torch.eye(3, dtype=torch.float64), torch.from_numpy(start).double()[:, None]], dim=1)
