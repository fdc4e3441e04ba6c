"""Arrays for the report's pictures, from one volume of a batch; they are stored in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.methods.base import StepResult
from viewalign.utils.io import atomic_write
from viewalign.utils.pooling import valid_fraction
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views import affines, lattice
from viewalign.views.batch import ViewBatch
from viewalign.views.samples import Sample

Array = NDArray[np.generic]


def snapshot(
    batch: ViewBatch,
    number: int,
    sample: Sample,
    result: StepResult,
    cells: Size,
    samples: int,
    step: int,
    aligned: bool = True,
) -> dict[str, Array]:
    """Collect the arrays of one volume of a batch: a pair of views, or the first view.

    Args:
        batch: the views.
        number: of the volume in the batch.
        sample: of that volume, for the voxels around its views.
        result: of a step with diagnostics.
        cells, samples: of the lattice.
        step: of the run.
        aligned: whether the method compares a pair of views position by position.
    """
    shown = slice(0, 2 if aligned else 1)
    maps = batch.to_volume[shown, number]
    arrays = {
        "views": batch.views[shown, number, 0].half(),
        "targets": batch.targets[shown, number, 0].half(),
        "valid": batch.valid[shown, number, 0],
        "to_volume": maps,
        "crop": sample.crop[0].half(),
        "start": torch.tensor(sample.start),
        "spacing": torch.tensor(sample.spacing, dtype=torch.float64),
        "step": torch.tensor(step),
    }
    if aligned:
        points = lattice.lattice_points(maps[:1], maps[1:2], batch.size, cells, samples)[0]
        arrays["points"] = torch.stack([affines.apply(affines.invert(affine), points) for affine in maps])
    for name, images in result.pictures.items():
        values = images.unflatten(0, batch.count)[shown, number]
        arrays[name] = principal_colours(values, batch.valid[shown, number]) if name == "features" else values[:, 0]
    return {name: _to_numpy(value) for name, value in arrays.items()}


VOLUMES = 3
"""Number of volumes shown on a page."""


def most_varied(samples: list[Sample]) -> list[int]:
    """Return up to three samples, those whose voxels have the largest standard deviations."""
    spread = torch.stack([sample.crop.std() for sample in samples]).nan_to_num(-1.0)
    order: list[int] = spread.argsort(descending=True, stable=True).tolist()
    return order[:VOLUMES]


def prefix(number: int) -> str:
    """Return the start of the names of a volume's arrays, counted from 0; those of the first have none."""
    return f"volume{number + 1}." if number else ""


def _to_numpy(value: Tensor) -> Array:
    return (value.half() if value.dtype in {torch.float32, torch.bfloat16} else value).cpu().numpy()


def principal_colours(maps: Tensor, valid: Tensor) -> Tensor:
    """Reduce feature maps (V, C, d, h, w) to three principal components in [0, 1], (V, 3, d, h, w).

    Components and range are computed from cells of which half or more is valid (V, 1, D, H, W).
    """
    rows = maps.float().movedim(1, -1).flatten(0, -2).cpu().nan_to_num()
    counts = valid_fraction(valid, spatial_size(maps)).flatten().cpu() >= 0.5
    counts = counts if counts.sum() > 3 else torch.ones_like(counts)
    rows = rows - rows[counts].mean(0)
    some = rows[counts][:: max(1, int(counts.sum()) // 4096)]
    _, _, axes = torch.linalg.svd(some, full_matrices=False)
    # The sign of a component is arbitrary; its largest weight is made positive so that pictures of a run are
    # comparable.
    axes = axes[:3] * axes[:3].gather(1, axes[:3].abs().argmax(1, keepdim=True)).sign()
    colours = rows @ axes.T
    few = colours[counts][:: max(1, int(counts.sum()) // 100_000)]
    low, high = few.quantile(0.02, dim=0), few.quantile(0.98, dim=0)
    scaled = ((colours - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    grids: Tensor = scaled.unflatten(0, (maps.shape[0], *maps.shape[2:]))
    return grids.movedim(-1, 1)


_MONTAGE = ("views", "input", "reconstruction", "targets")


def montage(arrays: Mapping[str, Array]) -> NDArray[np.uint8]:
    """Return the middle axial slices of the views, of the network's output and of its target side by side.

    There is a row for each volume, in one grey window from its 1st to its 99th percentile.
    """
    rows = []
    for start in (prefix(number) for number in range(VOLUMES)):
        shown = [arrays[start + name].astype(np.float32) for name in _MONTAGE if start + name in arrays]
        slices = [image[image.shape[0] // 2] for volumes in shown for image in volumes]
        if slices:
            row = np.concatenate(slices, axis=1)
            low, high = np.percentile(row[np.isfinite(row)], (1, 99)) if np.isfinite(row).any() else (0.0, 1.0)
            grey = np.nan_to_num((row - low) / max(float(high - low), 1e-6)).clip(0, 1)
            rows.append((255 * grey).round().astype(np.uint8))
    return np.concatenate(rows)


def write(path: Path, arrays: dict[str, Array]) -> None:
    """Write the arrays atomically."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read(path: Path) -> dict[str, Array]:
    """Read the arrays."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}
