"""Batches of views with the affines that locate them in their volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from viewalign.utils.precision import send
from viewalign.utils.rng import make_rng, make_torch_generator
from viewalign.utils.shapes import Size, spatial_size
from viewalign.views import intensity as transforms
from viewalign.views import resampling
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.samples import ArraySource, Sample, SampleReader
from viewalign.views.sampling import ISOTROPIC, Spacing, ViewSamplingConfig


@dataclass(frozen=True)
class ViewBatch:
    """V views of each of B volumes. Images are on the device; affines and numbers stay on the CPU, where they are used.

    Attributes:
        views: (V, B, C, D, H, W) float32, the input of networks; zero outside the volume.
        targets: the same views before low resolution, blur and noise: targets of reconstruction.
        to_volume: (V, B, 3, 4) float64 on the CPU, from voxel indices of a view to those of the stored volume.
        valid: (V, B, 1, D, H, W) bool, false outside the volume and inside an anonymisation mask.
        volume_id: (B,) int64 on the CPU, number of the volume in the store.
        subject_id: (B,) int64 on the CPU; two volumes of one subject are never used as negatives.
        sample: (B,) int64 on the CPU, number of the sample in the run, the key of its random numbers.
        claimed_boxes: (V, B, 2, 3) float64 on the CPU, overlaps that `sample_latentcampus` assumes; else None.
        local: views of the same volumes of another size, or None.
    """

    views: Tensor
    targets: Tensor
    to_volume: Tensor
    valid: Tensor
    volume_id: Tensor
    subject_id: Tensor
    sample: Tensor
    claimed_boxes: Tensor | None = None
    local: ViewBatch | None = None

    @property
    def size(self) -> Size:
        """(D, H, W) of a view in voxels."""
        return spatial_size(self.views)

    @property
    def count(self) -> tuple[int, int]:
        """Number of views per volume and of volumes: (V, B)."""
        return (self.views.shape[0], self.views.shape[1])

    def part(self, start: int, stop: int) -> ViewBatch:
        """Return volumes [start, stop) of the batch."""
        return ViewBatch(
            views=self.views[:, start:stop],
            targets=self.targets[:, start:stop],
            to_volume=self.to_volume[:, start:stop],
            valid=self.valid[:, start:stop],
            volume_id=self.volume_id[start:stop],
            subject_id=self.subject_id[start:stop],
            sample=self.sample[start:stop],
            claimed_boxes=None if self.claimed_boxes is None else self.claimed_boxes[:, start:stop],
            local=None if self.local is None else self.local.part(start, stop),
        )

    def double(self) -> ViewBatch:
        """Return the batch with float64 images."""
        local = None if self.local is None else self.local.double()
        return replace(self, views=self.views.double(), targets=self.targets.double(), local=local)


def build_views(
    samples: Sequence[Sample],
    size: Size,
    intensity: IntensityConfig | None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ViewBatch:
    """Resample and augment all views of a list of samples.

    Args:
        samples: one for each volume of the batch.
        size: (D, H, W) of a view in voxels.
        intensity: distribution of intensity transforms; None applies none.
        device: where views are computed.
        seed: seed of the run; random numbers are a function of (seed, sample, view).
    """
    device = torch.device(device)
    affines = [sample.to_volume for sample in samples]
    batch = _build(samples, affines, size, intensity, device, seed, 0)
    claimed = [sample.claimed for sample in samples if sample.claimed is not None]
    if claimed:
        return replace(batch, claimed_boxes=torch.stack(claimed, dim=1))
    local = [sample.local for sample in samples if sample.local is not None]
    if not local:
        return batch
    affines = [views.to_volume for views in local]
    first = samples[0].to_volume.shape[0]
    return replace(batch, local=_build(samples, affines, local[0].size, intensity, device, seed, first))


def _build(
    samples: Sequence[Sample],
    affines: Sequence[Tensor],
    size: Size,
    intensity: IntensityConfig | None,
    device: torch.device,
    seed: int,
    first: int,
) -> ViewBatch:
    """Build views of one size; `first` is the number of the first of them among all views of a volume."""
    columns = [
        _views_of(sample, maps, size, intensity, device, seed, first)
        for sample, maps in zip(samples, affines, strict=True)
    ]
    views, targets, valid = (torch.stack([column[k] for column in columns], dim=1) for k in range(3))
    return ViewBatch(
        views=views,
        targets=targets,
        to_volume=torch.stack(list(affines), dim=1),
        valid=valid,
        volume_id=torch.tensor([sample.volume_id for sample in samples]),
        subject_id=torch.tensor([sample.subject_id for sample in samples]),
        sample=torch.tensor([sample.index for sample in samples]),
    )


def _views_of(
    sample: Sample,
    affines: Tensor,
    size: Size,
    intensity: IntensityConfig | None,
    device: torch.device,
    seed: int,
    first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return views, targets and validity of one volume, each (V, ·, D, H, W)."""
    crop = send(sample.crop, device)
    masked = None if sample.masked is None else send(sample.masked, device)
    resampled = [_resample(sample, to_volume, crop, masked, size) for to_volume in affines]
    views, targets, valid = [], [], []
    for number, (view, inside) in enumerate(resampled, first):
        target = view
        if intensity is not None:
            rng = make_rng(seed, sample.index, number, "photometric")
            parameters = transforms.sample_intensity_parameters(rng, intensity)
            noise = make_torch_generator(device, seed, sample.index, number, "noise")
            target = transforms.intensity_transform(view, inside, parameters)
            view = transforms.degradation_transform(target, inside, parameters, noise)
        views.append(view)
        targets.append(target)
        valid.append(inside)
    return torch.stack(views), torch.stack(targets), torch.stack(valid)


def _resample(
    sample: Sample, to_volume: Tensor, crop: Tensor, masked: Tensor | None, size: Size
) -> tuple[Tensor, Tensor]:
    """Return one view (C, D, H, W), zero where it is not valid, and its valid voxels (1, D, H, W)."""
    to_crop = to_volume.clone()
    to_crop[:, 3] -= torch.tensor(sample.start, dtype=torch.float64)
    view = resampling.resample(crop, to_crop, size)
    valid = resampling.inside(sample.shape, to_volume, size, crop.device)[None]
    if masked is not None:
        valid = valid & (resampling.resample(masked.float(), to_crop, size) < 0.5)
    elif resampling.contains(sample.shape, to_volume, size):
        return view, valid
    return view * valid, valid


def sample_views(
    array: ArrayLike,
    size: Size,
    seed: int = 0,
    sampling: ViewSamplingConfig | None = None,
    intensity: IntensityConfig | None = None,
    spacing: Spacing = ISOTROPIC,
) -> ViewBatch:
    """Sample a pair of overlapping views of one array.

    Args:
        array: (D, H, W) or (C, D, H, W).
        size: (d, h, w) of a view in voxels.
        seed: seed of the pair.
        sampling: distribution of the geometry; None uses the published one.
        intensity: distribution of intensity transforms; None applies none.
        spacing: voxel size of the array in mm.

    Returns:
        Two views of one volume: `views` has shape (2, 1, C, *size).

    Example:
        >>> pair = sample_views(np.random.rand(96, 96, 96), size=(64, 64, 64))
        >>> pair.views.shape, pair.to_volume.shape
        (torch.Size([2, 1, 1, 64, 64, 64]), torch.Size([2, 1, 3, 4]))
    """
    number = np.zeros(1, dtype=np.int64)
    config = sampling or ViewSamplingConfig(size=size)
    reader = SampleReader(ArraySource(array, spacing), number, number, config, 1, seed)
    return build_views([reader[0]], size, intensity, seed=seed)
