"""Throughput of machines: of this one by measurement, of common GPUs from published figures."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from viewalign.config import Recipe
from viewalign.errors import UserError
from viewalign.methods.registry import build_method, requirements_of
from viewalign.networks.backbone import backbones
from viewalign.training.optimizers import build_optimizer
from viewalign.utils.precision import Precision, autocast, choose_device
from viewalign.views.batch import build_views
from viewalign.views.samples import ArraySource, Sample, SampleReader
from viewalign.views.sampling import ViewSamplingConfig

ANCHOR = (
    "nnU-Net's ResEnc-L on an A100 (35 h for 250,000 iterations of 2 crops, documentation/resenc_presets.md), assumed "
    "to be 160³ crops; other cards by the smaller ratio of bf16 arithmetic and bandwidth in NVIDIA's data sheets. "
    "No GPU has been measured: expect a factor of two either way"
)
_ANCHOR_FLOPS = 33e12
"""2 crops × 3 × 2,802 GFLOP (encoder and decoder at 160³) in 0.504 s."""


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet.

    Attributes:
        name: of the card.
        arithmetic: dense 16-bit TFLOP/s.
        bandwidth: of memory in GB/s.
        memory: in GB.
        half: 16-bit precision: bf16, or fp16 before Ampere.
    """

    name: str
    arithmetic: float
    bandwidth: float
    memory: float
    half: Precision = "bf16"

    @property
    def flops(self) -> float:
        """Operations per second that 3D networks reach on it, scaled from the anchor."""
        anchor = CARDS["a100"]
        return _ANCHOR_FLOPS * min(self.arithmetic / anchor.arithmetic, self.bandwidth / anchor.bandwidth)


CARDS = {
    "v100": Card("V100 32 GB", 125, 900, 32, "fp16"),
    "t4": Card("T4 16 GB", 65, 320, 16, "fp16"),
    "a100": Card("A100 40 GB", 312, 1555, 40),
    "a100-80": Card("A100 80 GB", 312, 2039, 80),
    "a40": Card("A40 48 GB", 150, 696, 48),
    "a6000": Card("RTX A6000 48 GB", 155, 768, 48),
    "l40s": Card("L40S 48 GB", 362, 864, 48),
    "rtx3090": Card("RTX 3090 24 GB", 71, 936, 24),
    "rtx4090": Card("RTX 4090 24 GB", 165, 1008, 24),
    "h100": Card("H100 SXM 80 GB", 989, 3350, 80),
    "h200": Card("H200 141 GB", 989, 4800, 141),
}


MEASURED: dict[tuple[str, str], tuple[float, str]] = {}
"""Measured operations per second of steps, with the source, by names of card and network; used instead of the anchor.

Empty: no GPU has been measured yet. `benchmarks/gpu` measures them.
"""


def rate_of(gpu: Card, network: str) -> tuple[float, str]:
    """Return the expected operations per second of a GPU with a network, and their source."""
    return MEASURED.get((gpu.name, network), (gpu.flops, ANCHOR))


def card(name: str) -> Card:
    """Return a GPU by name.

    Raises:
        UserError: it is not in the table.
    """
    key = name.lower().replace(" ", "")
    if key not in CARDS:
        raise UserError(f"gpu={name}: unknown GPU; known are {', '.join(CARDS)}.")
    return CARDS[key]


def measured_step(
    recipe: Recipe, precision: Precision, repeats: int = 2, device: str | None = None, volumes: int | None = None
) -> float:
    """Return the seconds of a step of a recipe on this machine: views, networks, loss and update, after a warm-up.

    Volumes are noise and reading is not included, because workers read during the step. Networks are not compiled,
    which takes minutes.

    Args:
        recipe: with its whole batch.
        precision, device: of the networks.
        repeats: the fastest of this many steps counts.
        volumes: of the step; default: the whole batch.
    """
    where = torch.device(device or choose_device())
    method = build_method(recipe).to(where)
    for network in backbones(method):
        network.recompute = recipe.runtime.recompute
    settings = recipe.optim
    optimizer = build_optimizer(
        method, settings.name, settings.lr, settings.weight_decay, settings.momentum, settings.betas
    )
    size, samples = recipe.views.patch_size, artificial_samples(recipe, volumes or recipe.batch)
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        batch = build_views(samples, size, recipe.views.photometric, where)
        with autocast(where.type, precision):
            loss = method(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_update(1)
        if where.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def artificial_samples(recipe: Recipe, volumes: int) -> list[Sample]:
    """Return samples for a recipe from a volume of noise 1.4 times as large as a view."""
    size, every = recipe.views.patch_size, np.arange(volumes)
    shape = (recipe.network.channels, *(round(1.4 * n) for n in size))
    noise = np.random.default_rng(0).normal(size=shape)
    source, sampler = ArraySource(noise, count=volumes), requirements_of(recipe).sampler
    reader = SampleReader(source, every, every, ViewSamplingConfig(size), volumes, 0, sampler=sampler)
    return [reader[k] for k in range(volumes)]


def measured_flops(precision: Precision, seconds: float = 4.0, device: str | None = None) -> float:
    """Return the operations per second of this machine: the fastest 3D convolution, forward and backward."""
    where = torch.device(device or choose_device())
    layer = torch.nn.Conv3d(32, 32, 3, padding=1).to(where)
    image = torch.zeros(1, 32, 48, 48, 48, device=where)
    operations = 3 * 2 * 27 * 32 * 32 * 48**3
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        begin = time.perf_counter()
        with autocast(where.type, precision):
            out = layer(image.requires_grad_())
        out.float().sum().backward()
        if where.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, operations / (time.perf_counter() - begin))
    return best
