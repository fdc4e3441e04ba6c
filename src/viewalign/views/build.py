"""From super-crops to a `ViewBatch`, on the training device: one resampling a view, then photometrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from viewalign.device import send
from viewalign.randomness import generator_of, torch_generator_of
from viewalign.views import photometric, resample
from viewalign.views.batch import ViewBatch
from viewalign.views.photometric import Photometrics
from viewalign.views.samples import Sample

Size = tuple[int, int, int]


def build_views(
    samples: Sequence[Sample],
    size: Size,
    photometrics: Photometrics | None,
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
    photometrics: Photometrics | None,
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
    sample: Sample, size: Size, photometrics: Photometrics | None, device: torch.device, seed: int, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return views, targets and validity of one volume, each (V, ·, D, H, W)."""
    crop = send(sample.crop, device)
    hidden = None if sample.hidden is None else send(sample.hidden, device)
    made = [_one_view(sample, k, crop, hidden, size) for k in range(sample.to_volume.shape[0])]
    views, targets, valid = [], [], []
    for number, (view, seen) in enumerate(made, first):
        if photometrics is not None:
            change = photometric.draw(generator_of(seed, sample.index, number, "photometric"), photometrics)
            noise = torch_generator_of(device, seed, sample.index, number, "noise")
            view = photometric.recolour(view, seen, change)
            target, view = view, photometric.degrade(view, seen, change, noise)
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
