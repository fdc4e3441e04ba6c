"""What is known of single voxels of a volume: an encoder's dense features, or plain intensities beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.views.affines import identity
from viewalign.views.alignment import sample, volume_to_grid
from viewalign.views.resampling import resample
from viewalign.weights.encoder import Encoder

Size = tuple[int, int, int]
Voxels = NDArray[np.int64]
Rows = NDArray[np.float32]


class FeatureReader(Protocol):
    """Anything that describes voxels by numbers."""

    def __call__(self, image: NDArray[np.float32], voxels: Voxels) -> Rows:
        """Describe voxels (P, 3), in (D, H, W) order, of an image (D, H, W) by rows (P, C)."""


class EncoderFeatures:
    """All feature maps of a frozen encoder, read linearly at voxels and concatenated.

    The image is seen in tiles of the size the encoder was trained with, half overlapping; a voxel's features are the
    mean over the tiles it lies in, each weighing the more the closer the voxel lies to its middle. A whole volume at
    once would be quicker for a CNN, but its instance normalisation would then work with statistics of another field of
    view than it was trained with.

    Args:
        encoder: as `load_encoder` gives it.
        device: where it runs.
        batch: tiles at a time.
    """

    def __init__(self, encoder: Encoder, device: torch.device | str = "cpu", batch: int = 8) -> None:
        self._encoder, self._device, self._batch = encoder.eval().to(device), torch.device(device), batch
        self._size: Size = encoder.size

    @torch.no_grad()
    def __call__(self, image: NDArray[np.float32], voxels: Voxels) -> Rows:
        """Describe voxels (P, 3) of an image (D, H, W), prepared as in pretraining, by rows (P, ΣC)."""
        volume = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
        tiles = list(tiles_with_voxels((image.shape[0], image.shape[1], image.shape[2]), self._size, voxels))
        total = torch.zeros(len(voxels), 1)
        rows = torch.zeros(len(voxels), 0)
        for first in range(0, len(tiles), self._batch):
            chunk = tiles[first : first + self._batch]
            seen = torch.stack([resample(volume, _shift(tile.start), self._size) for tile in chunk])
            maps = self._encoder(seen.to(self._device)).maps
            for number, tile in enumerate(chunk):
                read = self._read([one[number : number + 1] for one in maps], voxels[tile.voxels] - tile.start)
                rows = rows if rows.shape[1] else rows.new_zeros(len(voxels), read.shape[1])
                mine, weight = torch.from_numpy(tile.voxels), torch.from_numpy(tile.weights)[:, None]
                rows[mine] += weight * read
                total[mine] += weight
        return np.asarray((rows / total).numpy(), dtype=np.float32)

    def _read(self, maps: Sequence[Tensor], places: Voxels) -> Tensor:
        """Read one tile's maps (1, C, d, h, w) at places (P, 3) in its voxels."""
        points, still = torch.from_numpy(places).double()[None], identity(1)[None]
        columns = []
        for one in maps:
            grid = (one.shape[2], one.shape[3], one.shape[4])
            where = volume_to_grid(points, still, self._size, grid)[0]
            columns.append(sample(one, where.to(one.device))[0])
        return torch.cat(columns, dim=1).float().cpu()


class IntensityFeatures:
    """A voxel's intensity, and that of its neighbourhood under Gaussian blurs: what needs no network at all.

    Args:
        sigmas: of the blurs, in voxels.
    """

    def __init__(self, sigmas: Sequence[float] = (1.0, 2.0, 4.0)) -> None:
        self._sigmas = tuple(sigmas)

    def __call__(self, image: NDArray[np.float32], voxels: Voxels) -> Rows:
        """Describe voxels (P, 3) of an image (D, H, W) by rows (P, 1 + number of blurs)."""
        from scipy.ndimage import gaussian_filter

        where = tuple(voxels.T)
        blurred = [gaussian_filter(image, sigma)[where] for sigma in self._sigmas]
        return np.stack([image[where], *blurred], axis=1).astype(np.float32)


def tile_starts(length: int, side: int) -> NDArray[np.int64]:
    """Return where tiles of `side` voxels begin along an axis of `length`: evenly spread, overlapping by half or more.

    A volume shorter than a tile gets one tile, centred on it, which then begins before the volume.
    """
    if length <= side:
        return np.array([-((side - length) // 2)], dtype=np.int64)
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return np.rint(np.linspace(0, length - side, count)).astype(np.int64)


@dataclass(frozen=True)
class Tile:
    """A part of a volume, and what is asked of it.

    Attributes:
        start: its first voxel (3,), which may lie before the volume.
        voxels: numbers (K,) of the voxels that lie in it.
        weights: float32 (K,), 1 in its middle and falling linearly to almost 0 at its faces, multiplied over the axes.
    """

    start: Voxels
    voxels: NDArray[np.int64]
    weights: NDArray[np.float32]


def tiles_with_voxels(shape: Size, size: Size, voxels: Voxels) -> Iterator[Tile]:
    """Yield the tiles of a volume in which any of the voxels (P, 3) lie."""
    for start in product(*(tile_starts(n, side) for n, side in zip(shape, size, strict=True))):
        # Distances are taken to the outer faces, so that the outermost voxels of a tile still weigh a little.
        away = np.abs(voxels - start - (np.array(size) - 1) / 2) / (np.array(size) / 2)
        inside = np.flatnonzero((away < 1).all(axis=1))
        if len(inside):
            weights = (1 - away[inside]).prod(axis=1)
            yield Tile(np.array(start, dtype=np.int64), inside, weights.astype(np.float32))


def _shift(start: Voxels) -> Tensor:
    """Return the affine (3, 4) of a tile: its voxel 0 is the volume's voxel `start`."""
    return torch.cat([torch.eye(3, dtype=torch.float64), torch.from_numpy(start).double()[:, None]], dim=1)
