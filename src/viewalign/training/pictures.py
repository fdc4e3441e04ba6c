"""Arrays for the report's pictures, taken from one volume of a batch. They stay in the run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from viewalign.methods.base import StepResult
from viewalign.utils.io import atomic_write
from viewalign.views import affines, lattice
from viewalign.views.batch import ViewBatch
from viewalign.views.feature_grids import valid_fraction
from viewalign.views.samples import Sample

Array = NDArray[np.generic]
Size = tuple[int, int, int]


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
    """Collect what the report draws of one volume of a batch: a pair of views, or the first view alone.

    Args:
        batch: the views.
        number: which volume of the batch.
        sample: that volume's sample, for the box of the volume around its views.
        result: of a step with `examine`.
        cells, samples: of the lattice.
        step: where the run is.
        aligned: whether the method compares a pair of views place by place.
    """
    few = slice(0, 2 if aligned else 1)
    maps = batch.to_volume[few, number]
    arrays = {
        "views": batch.views[few, number, 0].half(),
        "targets": batch.targets[few, number, 0].half(),
        "valid": batch.valid[few, number, 0],
        "to_volume": maps,
        "crop": sample.crop[0].half(),
        "start": torch.tensor(sample.start),
        "spacing": torch.tensor(sample.spacing, dtype=torch.float64),
        "step": torch.tensor(step),
    }
    if aligned:
        points = lattice.lattice_points(maps[:1], maps[1:2], batch.size, cells, samples)[0]
        arrays["points"] = torch.stack([affines.apply(affines.invert(one), points) for one in maps])
    for name, values in result.pictures.items():
        shown = values.unflatten(0, batch.count)[few, number]
        arrays[name] = principal_colours(shown, batch.valid[few, number]) if name == "features" else shown[:, 0]
    return {name: _plain(value) for name, value in arrays.items()}


def most_varied(samples: list[Sample]) -> int:
    """Return which sample's voxels vary most within its box: there is most to see in it."""
    return int(torch.stack([sample.crop.std() for sample in samples]).nan_to_num(-1.0).argmax())


def _plain(value: Tensor) -> Array:
    return (value.half() if value.dtype in {torch.float32, torch.bfloat16} else value).cpu().numpy()


def principal_colours(maps: Tensor, valid: Tensor) -> Tensor:
    """Reduce feature maps (V, C, d, h, w) to three principal components, scaled to [0, 1] for colours.

    Components and scale come from cells that are mostly valid (V, 1, D, H, W), so that padding does not colour tissue.
    """
    rows = maps.float().movedim(1, -1).flatten(0, -2).cpu().nan_to_num()
    counts = valid_fraction(valid, (maps.shape[2], maps.shape[3], maps.shape[4])).flatten().cpu() >= 0.5
    counts = counts if counts.sum() > 3 else torch.ones_like(counts)
    rows = rows - rows[counts].mean(0)
    some = rows[counts][:: max(1, int(counts.sum()) // 4096)]
    _, _, axes = torch.linalg.svd(some, full_matrices=False)
    # The sign of a component is arbitrary; its largest weight is made positive so that pictures of a run compare.
    axes = axes[:3] * axes[:3].gather(1, axes[:3].abs().argmax(1, keepdim=True)).sign()
    colours = rows @ axes.T
    few = colours[counts][:: max(1, int(counts.sum()) // 100_000)]
    low, high = few.quantile(0.02, dim=0), few.quantile(0.98, dim=0)
    scaled = ((colours - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    grids: Tensor = scaled.unflatten(0, (maps.shape[0], *maps.shape[2:]))
    return grids.movedim(-1, 1)


def write(path: Path, arrays: dict[str, Array]) -> None:
    """Write the arrays, whole or not at all."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read(path: Path) -> dict[str, Array]:
    """Read the arrays."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}
