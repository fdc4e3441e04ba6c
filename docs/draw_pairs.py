"""Draw the pictures of docs/method.md: pairs of views with shared positions, and distances of compared positions.

Run it from the root of the checkout: `python docs/draw_pairs.py`. The brain is the MNI152 T1 average of nilearn.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from nilearn.datasets import load_mni152_template
from numpy.typing import NDArray

from viewalign.utils.rng import make_rng
from viewalign.views import affines, lattice
from viewalign.views.batch import ViewBatch, sample_views
from viewalign.views.latentcampus import misplacement, sample_latentcampus
from viewalign.views.sampling import ViewSamplingConfig

IMAGES = Path(__file__).parent / "images"
SIZE = (96, 96, 96)
COLOURS = ("#e07b00", "#1777cc")
CASES = {
    "one frame, as published": (ViewSamplingConfig(SIZE, p_rotation=0, p_scale=0), 7),
    "one frame, turned and scaled": (ViewSamplingConfig(SIZE, p_rotation=1, p_scale=1), 4),
    "a frame for each view\n(views.independent)": (
        ViewSamplingConfig(SIZE, p_rotation=1, p_scale=1, independent=True),
        11,
    ),
}


def template() -> NDArray[np.float32]:
    """Return the brain with axes (up, to the back, to the left)."""
    volume = load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    return np.ascontiguousarray(volume[::-1, ::-1].transpose(2, 1, 0))


def shared_points(batch: ViewBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return which points of a 7³ lattice both views contain, and the lattice in the voxels of each view."""
    a, b = batch.to_volume[0], batch.to_volume[1]
    points = lattice.lattice_points(a, b, batch.size, (7, 7, 7), 1)
    both = lattice.inside(points, a, batch.size) & lattice.inside(points, b, batch.size)
    return both[0], [affines.apply(affines.invert(one), points)[0] for one in (a, b)]


def draw_pair_of(axes: tuple[Axes, Axes], batch: ViewBatch) -> None:
    """Draw the middle layer of the lattice on one slice of each view; its points have the same colours in both."""
    both, places = shared_points(batch)
    layer = torch.arange(343).view(7, 7, 7)[3].flatten()
    layer = layer[both[layer]]
    shades = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(layer)))
    for number, (axis, where) in enumerate(zip(axes, places, strict=True)):
        # A rotated layer crosses many slices: the slice through the centre of its points is shown.
        depth = int(where[layer, 0].mean().round().clamp(0, batch.size[0] - 1))
        axis.imshow(batch.views[number, 0, 0, depth], cmap="gray", vmin=0, vmax=0.9)
        axis.scatter(where[layer, 2], where[layer, 1], c=shades, s=16, edgecolors="white", linewidths=0.5)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set(color=COLOURS[number], linewidth=3)


def draw_cases(volume: NDArray[np.float32]) -> Path:
    """Draw one pair of each kind of geometry."""
    figure, axes = plt.subplots(2, len(CASES), figsize=(9.6, 6.9), layout="constrained")
    for column, (title, (drawing, seed)) in enumerate(CASES.items()):
        draw_pair_of((axes[0, column], axes[1, column]), sample_views(volume, SIZE, seed, drawing))
        axes[0, column].set_title(title, fontsize=11)
    axes[0, 0].set_ylabel("view 1", color=COLOURS[0], fontsize=12)
    axes[1, 0].set_ylabel("view 2", color=COLOURS[1], fontsize=12)
    path = IMAGES / "pairs.png"
    figure.savefig(path, dpi=110)
    return path


def draw_errors(draws: int = 600) -> Path:
    """Plot the distance between compared positions for both geometries, for 64³ views in 112³."""
    size, drawing = (64, 64, 64), ViewSamplingConfig((64, 64, 64), p_rotation=0, p_scale=0)
    pairs = [sample_latentcampus(make_rng(k, "picture"), (112, 112, 112), drawing) for k in range(draws)]
    error = misplacement(pairs, size).mean(1).numpy()
    figure, axis = plt.subplots(figsize=(7.4, 3.0), layout="constrained")
    axis.hist(error, bins=np.arange(0, 52, 2), color="#b0b7c0", edgecolor="white", label="released code's geometry")
    axis.axvline(error.mean(), color="#555", linestyle="--", label=f"its mean, {error.mean():.1f} voxels")
    axis.axvline(0, color="#12a150", linewidth=5, label="viewalign: at most 0.001 voxel")
    axis.set(
        xlabel="distance of two places that are compared (voxels)", ylabel=f"pairs of views, of {draws}", xlim=(-1, 52)
    )
    axis.legend(frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    path = IMAGES / "misplacement.png"
    figure.savefig(path, dpi=110)
    return path


def main() -> None:
    """Draw `docs/images/pairs.png` and `docs/images/misplacement.png`."""
    for path in (draw_cases(template()), draw_errors()):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
