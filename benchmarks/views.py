"""A pair of augmented views of a stored volume against batchgenerators doing the same work on the whole volume.

`python benchmarks/views.py [--draws 100] [--sizes 64 128]`

One thread. Ours: read the voxels that both views need from a store, resample each view once, change its intensities.
The peer, in the same run, does what the published pipelines do: SpatialTransform of the whole base volume (order 3;
rotation and scale with probability 0.2 each, mirrored), the same changes of intensity at the same probabilities on all
of it, then two crops; its volume is already in memory. Base volumes are 102³ for 64³ views and 205³ for 128³ ones. The
last line is one JSON object; `ratio` compares means over draws and is that of the worse size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import (
    GaussianBlurTransform,
    GaussianNoiseTransform,
    RicianNoiseTransform,
)
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform
from numpy.typing import NDArray

from viewalign.data.store import store_from_arrays
from viewalign.views.batch import build_views
from viewalign.views.intensity_config import IntensityConfig
from viewalign.views.samples import SampleReader
from viewalign.views.sampling import ViewSamplingConfig

TARGET = 0.167
BASE = {64: 102, 128: 205}


def make_volume(size: int) -> NDArray[np.float32]:
    """Make a smooth body with texture in a volume of `size` voxels a side."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, size),) * 3, indexing="ij", sparse=True)
    body = sum(axis**2 for axis in axes) < 0.8
    texture = rng.normal(size=(size,) * 3)
    return np.where(body, texture + sum(np.sin(7 * axis) for axis in axes), 0).astype(np.float32)


def published(base: int, p: IntensityConfig) -> Compose:
    """Build the peer: order-3 resampling of the whole volume and the changes of intensity of `p`."""
    radians = np.pi / 6
    return Compose(
        [
            SpatialTransform(
                (base,) * 3,
                do_elastic_deform=False,
                angle_x=(-radians, radians),
                angle_y=(-radians, radians),
                angle_z=(-radians, radians),
                scale=(0.7, 1.4),
                border_mode_data="constant",
                border_cval_data=0,
                order_data=3,
                random_crop=False,
                p_rot_per_sample=0.2,
                p_scale_per_sample=0.2,
            ),
            MirrorTransform((0, 1, 2)),
            BrightnessMultiplicativeTransform(p.brightness, p_per_sample=p.p_brightness),
            ContrastAugmentationTransform(p.contrast, p_per_sample=p.p_contrast),
            GammaTransform(p.gamma, True, True, retain_stats=True, p_per_sample=p.p_gamma_inverted),
            GammaTransform(p.gamma, False, True, retain_stats=True, p_per_sample=p.p_gamma),
            SimulateLowResolutionTransform(
                p.low_resolution, order_downsample=0, order_upsample=3, p_per_sample=p.p_low_resolution
            ),
            GaussianBlurTransform(p.blur_sigma, p_per_sample=p.p_blur),
            RicianNoiseTransform(p.noise_variance, p_per_sample=p.p_noise / 2),
            GaussianNoiseTransform(p.noise_variance, p_per_sample=p.p_noise / 2),
        ]
    )


def timed(runs: list[Callable[[int], object]], draws: int) -> list[list[float]]:
    """Return the seconds of each draw of each pipeline, by turns; one draw before them warms up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for k in range(draws + 1):
        for run, kept in zip(runs, seconds, strict=True):
            begin = time.perf_counter()
            run(k)
            kept.append(time.perf_counter() - begin)
    return [kept[1:] for kept in seconds]


def compare(size: int, draws: int) -> dict[str, float]:
    """Measure both pipelines for one size of views."""
    base, ranges = BASE[size], IntensityConfig()
    volume = make_volume(base)
    peer = published(base, ranges)
    rng = np.random.default_rng(1)

    def theirs(_: int) -> list[NDArray[np.float32]]:
        out = peer(data=volume[None, None].copy())["data"]
        starts = rng.integers(0, base - size + 1, size=(2, 3))
        return [out[0, 0, d : d + size, h : h + size, w : w + size].copy() for d, h, w in starts]

    with tempfile.TemporaryDirectory() as folder:
        store = store_from_arrays(Path(folder) / "store", {"volume": volume})
        alone = np.zeros(1, dtype=np.int64)
        reader = SampleReader(store, alone, alone, ViewSamplingConfig((size, size, size)), 1, 0)

        def ours(k: int) -> object:
            return build_views([reader[k]], (size, size, size), ranges)

        mine, peers = timed([ours, theirs], draws)
    return {
        "size": size,
        "base": base,
        "ours_ms": round(1000 * mean(mine), 1),
        "ours_median_ms": round(1000 * median(mine), 1),
        "peer_ms": round(1000 * mean(peers), 1),
        "peer_median_ms": round(1000 * median(peers), 1),
        "ratio": round(mean(mine) / mean(peers), 4),
    }


def main() -> None:
    """Measure every size and print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=sorted(BASE))
    parser.add_argument("--draws", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)
    warnings.filterwarnings("ignore")
    rows = []
    for size in arguments.sizes:
        rows.append(compare(size, arguments.draws))
        print(json.dumps(rows[-1]), flush=True)
    worst = max(row["ratio"] for row in rows)
    print(json.dumps({"name": "views", "ratio": worst, "target": TARGET, "cases": rows}))


if __name__ == "__main__":
    main()
