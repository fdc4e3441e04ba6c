"""Random numbers of methods for each image, as a function of (seed, sample, view)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from viewalign.networks import masking
from viewalign.networks.backbone import Backbone
from viewalign.utils.precision import send
from viewalign.utils.rng import make_rng, make_torch_generator
from viewalign.utils.shapes import Size
from viewalign.views.batch import ViewBatch
from viewalign.views.corruption import CorruptionConfig, corrupt


def generators(batch: ViewBatch, seed: int, purpose: str) -> list[np.random.Generator]:
    """Return a generator for each image of a batch (N = V·B), first views first."""
    views, _ = batch.count
    return [make_rng(seed, sample, view, purpose) for view in range(views) for sample in batch.sample.tolist()]


def block_masks(batch: ViewBatch, seed: int, block: Size, ratio: float, whole: float = 0.0) -> masking.BlockMask:
    """Sample the masked blocks of every image; each has none with the probability `whole`."""
    d, h, w = masking.block_grid(batch.size, block)
    mask = masking.sample_masks(generators(batch, seed, "mask"), d * h * w, ratio, batch.views.device)
    if whole == 0:
        return mask
    masked = [rng.random() >= whole for rng in generators(batch, seed, "whole")]
    hidden = mask.hidden & send(torch.tensor(masked), batch.views.device)[:, None]
    return replace(mask, hidden=hidden, whole=tuple(k for k, one in enumerate(masked) if not one))


def sample_drop_path(backbone: Backbone, batch: ViewBatch, seed: int, training: bool) -> None:
    """Sample stochastic depth for the images of a batch; nothing is skipped outside training."""
    backbone.sample_drop_path(generators(batch, seed, "drop path") if training else None)


def corrupt_views(batch: ViewBatch, config: CorruptionConfig, seed: int) -> Tensor:
    """Return every view (N, C, D, H, W) of a batch, each corrupted with its own random numbers."""
    views, valid = batch.views.flatten(0, 1), batch.valid.flatten(0, 1)
    samples = batch.sample.tolist() * batch.count[0]
    out = []
    for k, rng in enumerate(generators(batch, seed, "distortion")):
        noise = make_torch_generator(views.device, seed, samples[k], k // batch.count[1], "filling")
        out.append(corrupt(views[k], valid[k], config, rng, noise))
    return torch.stack(out)
