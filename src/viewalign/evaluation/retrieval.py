"""Retrieval of corresponding points between two views of a held-out volume, without any training.

Views are sampled as in pretraining, but always rotated, scaled and mirrored independently. For each point that both
views contain, the most similar feature among all shared points of the other view is retrieved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from viewalign.utils.shapes import spatial_size
from viewalign.views import lattice
from viewalign.views.alignment import find_correspondences
from viewalign.views.batch import ViewBatch, sample_views
from viewalign.views.feature_grids import common_grid, resize
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.sampling import ViewSamplingConfig
from viewalign.weights.encoder import Encoder


@dataclass(frozen=True)
class Retrieval:
    """Results, one value per image.

    Attributes:
        hits: fraction of points whose most similar point is the corresponding one, in [0, 1].
        distances: mean distance between corresponding and retrieved point, in voxels of the volume.
        chance: expected distance of a random choice among the shared points, in voxels.
    """

    hits: tuple[float, ...]
    distances: tuple[float, ...]
    chance: tuple[float, ...]


@torch.no_grad()
def evaluate_retrieval(
    encoder: Encoder,
    images: Sequence[NDArray[np.float32]],
    seed: int = 0,
    sampling: ViewSamplingConfig | None = None,
    intensity: IntensityConfig | None = None,
    cells: int = 7,
    device: str = "cpu",
) -> Retrieval:
    """Retrieve the points of one view in another, for images (D, H, W) that are prepared as in pretraining.

    Args:
        encoder: from `load_encoder`.
        images: held-out volumes.
        seed: of the views, which do not depend on the encoder.
        sampling: geometry of the views; None: independent views that are always rotated, scaled and mirrored.
        intensity: intensity transforms; None: defaults of pretraining.
        cells: maximum number of points per axis.
        device: where the encoder runs, cpu or cuda.
    """
    sampling = sampling or ViewSamplingConfig(encoder.size, p_rotation=1.0, p_scale=1.0, independent=True)
    encoder, intensity = encoder.eval().to(device), intensity or IntensityConfig()
    rows = [
        _evaluate_image(encoder, sample_views(image, sampling.size, seed + k, sampling, intensity), cells, device)
        for k, image in enumerate(images)
    ]
    hits, distances, chance = zip(*rows, strict=True)
    return Retrieval(hits, distances, chance)


def _evaluate_image(encoder: Encoder, batch: ViewBatch, cells: int, device: str) -> tuple[float, float, float]:
    maps = [features.cpu() for features in encoder(batch.views.flatten(0, 1).to(device)).maps]
    grid = common_grid([spatial_size(features) for features in maps])
    joined = torch.cat([resize(features, grid) for features in maps], dim=1)
    shared = find_correspondences(batch.to_volume[0], batch.to_volume[1], batch.size, [grid], batch.valid, cells, 1)
    counts = shared.weight[0] > 0
    points = lattice.lattice_points(batch.to_volume[0], batch.to_volume[1], batch.size, shared.cells, 1)[0][counts]
    a, b = (_standardise(rows) for rows in shared.read([joined])[:, 0, counts])
    return retrieval_scores(a @ b.T, points)


def retrieval_scores(similarity: Tensor, points: Tensor) -> tuple[float, float, float]:
    """Return hit rate, mean distance to the retrieved point, and the expected distance of a random choice.

    Args:
        similarity: (P, P), of each point of one view (rows) to all points of the other (columns).
        points: (P, 3) coordinates in voxels; point k of both views is the same.
    """
    distances = torch.cdist(points.double(), points.double())
    retrieved, index = similarity.argmax(1), torch.arange(len(points))
    hits = (retrieved == index).double().mean()
    return float(hits), float(distances[index, retrieved].mean()), float(distances.mean())


def _standardise(rows: Tensor) -> Tensor:
    """Standardise each channel of (P, C) over the points, then normalise each row to length 1."""
    rows = rows.double()
    return F.normalize((rows - rows.mean(0)) / rows.std(0, unbiased=False).clamp(min=1e-6), dim=1)
