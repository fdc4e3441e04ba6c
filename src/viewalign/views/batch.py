"""What the views room hands over: a batch of views and the affines that say all about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from viewalign.utils.precision import send
from viewalign.utils.rng import make_rng, make_torch_generator
from viewalign.views import intensity as photometric
from viewalign.views import resampling as resample
from viewalign.views.intensity import IntensityConfig
from viewalign.views.samples import Sample, SampleReader
from viewalign.views.sampling import ViewSamplingConfig


@dataclass(frozen=True)
class ViewBatch:
    """V views of each of B volumes.

    Attributes:
        views: (V, B, C, D, H, W) float32, what networks see; zero where no voxel of the volume is.
        targets: the same views before low resolution, blur and noise: what a reconstruction is compared with.
        to_volume: (V, B, 3, 4) float64 on the CPU, from a view's voxel index to the stored volume's voxel index.
        valid: (V, B, 1, D, H, W) bool, false outside the volume and inside an anonymisation mask.
        volume_id: (B,) int64, the volume's number in the store. Like affines and the other numbers it stays on the
            CPU, where it is read: asking a GPU for it would make every step wait.
        subject_id: (B,) int64, so that two volumes of one person are never taken for strangers.
        sample: (B,) int64, the sample's number in the run, from which its random numbers derive.
        claimed_boxes: (V, B, 2, 3) float64 on the CPU, where the released geometry believes that views overlap; only
            for views drawn by `released.draw_released`, and true of none of them.
        local: further views of the same volumes, of another size; None for most methods.
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
    def size(self) -> tuple[int, int, int]:
        """The view's (D, H, W) in voxels."""
        d, h, w = self.views.shape[-3:]
        return (d, h, w)

    @property
    def count(self) -> tuple[int, int]:
        """Views per volume and volumes: (V, B)."""
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
        """Return the batch with its images in float64, for proofs."""
        local = None if self.local is None else self.local.double()
        return replace(self, views=self.views.double(), targets=self.targets.double(), local=local)


Size = tuple[int, int, int]


def build_views(
    samples: Sequence[Sample],
    size: Size,
    photometrics: IntensityConfig | None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> ViewBatch:
    """Cut, recolour and degrade every view of a list of samples.

    Args:
        samples: what the loader read, one for each volume of the batch.
        size: (D, H, W) of a view in voxels.
        photometrics: what may change in intensity; None leaves views as they are.
        device: where views are made.
        seed: the run's seed; draws derive from (seed, sample, view).
    """
    main = _build(samples, size, photometrics, torch.device(device), seed, 0)
    claimed = [sample.claimed for sample in samples if sample.claimed is not None]
    local = [replace(one, to_volume=one.local.to_volume) for one in samples if one.local is not None]
    if not local:
        return replace(main, claimed_boxes=torch.stack(claimed, dim=1) if claimed else None)
    assert samples[0].local is not None
    first = samples[0].to_volume.shape[0]
    return replace(main, local=_build(local, samples[0].local.size, photometrics, torch.device(device), seed, first))


def _build(
    samples: Sequence[Sample],
    size: Size,
    photometrics: IntensityConfig | None,
    device: torch.device,
    seed: int,
    first: int,
) -> ViewBatch:
    """Build views of one size, of which `first` is the number of the first among all views of a volume."""
    columns = [_views_of(sample, size, photometrics, device, seed, first) for sample in samples]
    views, targets, valid = (torch.stack([column[k] for column in columns], dim=1) for k in range(3))
    return ViewBatch(
        views=views,
        targets=targets,
        to_volume=torch.stack([sample.to_volume for sample in samples], dim=1),
        valid=valid,
        volume_id=torch.tensor([sample.volume_id for sample in samples]),
        subject_id=torch.tensor([sample.subject_id for sample in samples]),
        sample=torch.tensor([sample.index for sample in samples]),
    )


def _views_of(
    sample: Sample, size: Size, photometrics: IntensityConfig | None, device: torch.device, seed: int, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return views, targets and validity of one volume, each (V, ·, D, H, W)."""
    crop = send(sample.crop, device)
    hidden = None if sample.hidden is None else send(sample.hidden, device)
    made = [_one_view(sample, k, crop, hidden, size) for k in range(sample.to_volume.shape[0])]
    views, targets, valid = [], [], []
    for number, (view, seen) in enumerate(made, first):
        if photometrics is not None:
            change = photometric.sample_intensity_parameters(
                make_rng(seed, sample.index, number, "photometric"), photometrics
            )
            noise = make_torch_generator(device, seed, sample.index, number, "noise")
            view = photometric.intensity_transform(view, seen, change)
            target, view = view, photometric.degradation_transform(view, seen, change, noise)
        else:
            target = view
        views.append(view)
        targets.append(target)
        valid.append(seen)
    return torch.stack(views), torch.stack(targets), torch.stack(valid)


def _one_view(sample: Sample, number: int, crop: Tensor, hidden: Tensor | None, size: Size) -> tuple[Tensor, Tensor]:
    """Cut one view and say which of its voxels are valid."""
    to_volume = sample.to_volume[number]
    to_crop = to_volume.clone()
    to_crop[:, 3] -= torch.tensor(sample.start, dtype=torch.float64)
    view = resample.cut(crop, to_crop, size)
    seen = resample.inside(sample.shape, to_volume, size, crop.device)[None]
    if hidden is not None:
        seen = seen & (resample.cut(hidden.float(), to_crop, size) < 0.5)
    elif resample.contains(sample.shape, to_volume, size):
        return view, seen
    return view * seen, seen


class ArraySource:
    """One array (C, D, H, W) in the place of a store."""

    def __init__(self, array: ArrayLike, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        values = np.asarray(array, dtype=np.float32)
        self._array = values[None] if values.ndim == 3 else values
        self._spacing = spacing

    def __len__(self) -> int:
        """Return 1."""
        return 1

    def shape(self, k: int) -> Size:  # noqa: ARG002
        """Return (D, H, W)."""
        d, h, w = self._array.shape[1:]
        return (d, h, w)

    def spacing(self, k: int) -> tuple[float, float, float]:  # noqa: ARG002
        """Return the voxel size in mm."""
        return self._spacing

    def foreground_threshold(self, k: int) -> float:  # noqa: ARG002
        """Return a value that every voxel exceeds: all of the array is foreground."""
        return -np.inf

    def read(self, k: int, start: Size, stop: Size) -> NDArray[np.float32]:  # noqa: ARG002
        """Return the voxels of a box."""
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return np.ascontiguousarray(self._array[(slice(None), *box)])

    def read_mask(self, k: int, kind: str, start: Size, stop: Size) -> None:
        """Return None: an array has no masks."""


def sample_views(
    array: ArrayLike,
    size: Size,
    seed: int = 0,
    drawing: ViewSamplingConfig | None = None,
    photometrics: IntensityConfig | None = None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> ViewBatch:
    """Draw a pair of views from one array.

    Args:
        array: (D, H, W) or (C, D, H, W).
        size: (d, h, w) of a view in voxels.
        seed: another seed gives another pair.
        drawing: which geometry may be drawn; None takes the published ranges.
        photometrics: which changes of intensity may be drawn; None draws none.
        spacing: the array's voxel size in mm.

    Returns:
        A `ViewBatch` of two views of one volume.
    """
    source = ArraySource(array, spacing)
    alone = np.zeros(1, dtype=np.int64)
    reader = SampleReader(source, alone, alone, drawing or ViewSamplingConfig(size=size), 1, seed)
    return build_views([reader[0]], size, photometrics, seed=seed)
