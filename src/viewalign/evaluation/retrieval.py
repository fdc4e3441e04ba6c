"""Does an encoder know a place of the body again? Places of one view are looked for among those of another view.

Views of held-out volumes are drawn as in pretraining, but always turned, scaled and mirrored independently; for each
place that both share, the most similar feature among all shared places of the other view is taken. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from viewalign.views import lattice
from viewalign.views.alignment import find_correspondences
from viewalign.views.batch import ViewBatch, sample_views
from viewalign.views.feature_grids import common_grid, resize
from viewalign.views.intensity import IntensityConfig
from viewalign.views.sampling import ViewSamplingConfig
from viewalign.weights.encoder import Encoder

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Retrieval:
    """How well places were found again; one entry an image.

    Attributes:
        hits: the share of places whose most similar place is the place itself, in [0, 1].
        distances: the mean distance between the place sought and the place found, in voxels of the volume.
        chance: the distance that a random guess among the shared places would have, in voxels.
    """

    hits: tuple[float, ...]
    distances: tuple[float, ...]
    chance: tuple[float, ...]


@torch.no_grad()
def find_places(
    encoder: Encoder,
    images: Sequence[NDArray[np.float32]],
    seed: int = 0,
    drawing: ViewSamplingConfig | None = None,
    photometrics: IntensityConfig | None = None,
    cells: int = 7,
    device: str = "cpu",
) -> Retrieval:
    """Look for the places of one view in another, for each image (D, H, W), prepared as in pretraining.

    Args:
        encoder: as `load_encoder` gives it.
        images: held-out volumes.
        seed: of the views; equal seeds give equal views to every encoder.
        drawing: None takes independent views that are always turned, scaled and mirrored.
        photometrics: changes of intensity; None takes the default ones of pretraining.
        cells: places per axis, at most.
        device: where the encoder runs: cpu or cuda.
    """
    drawing = drawing or ViewSamplingConfig(encoder.size, p_rotation=1.0, p_scale=1.0, independent=True)
    encoder, looks = encoder.eval().to(device), photometrics or IntensityConfig()
    rows = [
        _one_image(encoder, sample_views(image, drawing.size, seed + k, drawing, looks), cells, device)
        for k, image in enumerate(images)
    ]
    hits, distances, chance = zip(*rows, strict=True)
    return Retrieval(hits, distances, chance)


def _one_image(encoder: Encoder, batch: ViewBatch, cells: int, device: str) -> tuple[float, float, float]:
    maps = [one.cpu() for one in encoder(batch.views.flatten(0, 1).to(device)).maps]
    grid = common_grid([_grid_of(one) for one in maps])
    joined = torch.cat([resize(one, grid) for one in maps], dim=1)
    shared = find_correspondences(batch.to_volume[0], batch.to_volume[1], batch.size, [grid], batch.valid, cells, 1)
    counts = shared.weight[0] > 0
    points = lattice.lattice_points(batch.to_volume[0], batch.to_volume[1], batch.size, shared.cells, 1)[0][counts]
    a, b = (_standardised(one) for one in shared.read([joined])[:, 0, counts])
    return judge(a @ b.T, points)


def judge(similarity: Tensor, points: Tensor) -> tuple[float, float, float]:
    """Return hit rate, mean distance of the place found, and that of a random guess.

    Args:
        similarity: (P, P), row: the place sought, column: a place of the other view.
        points: (P, 3) where the places are, in voxels; a place is row k of one view and column k of the other.
    """
    apart = torch.cdist(points.double(), points.double())
    found = similarity.argmax(1)
    places = torch.arange(len(points))
    return float((found == places).double().mean()), float(apart[places, found].mean()), float(apart.mean())


def _standardised(rows: Tensor) -> Tensor:
    """Give every channel (P, C) mean 0 and deviation 1 over the places, then every row length 1."""
    rows = rows.double()
    return F.normalize((rows - rows.mean(0)) / rows.std(0, unbiased=False).clamp(min=1e-6), dim=1)


def _grid_of(features: Tensor) -> Size:
    return (features.shape[2], features.shape[3], features.shape[4])
