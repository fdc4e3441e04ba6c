"""Similarity of registered images, and smoothness of displacement fields."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from viewalign.losses.reduction import mean_per_view
from viewalign.utils.precision import at_least_float32, full_precision
from viewalign.utils.shapes import Size, spatial_size


@full_precision
def local_ncc(moved: Tensor, fixed: Tensor, counts: Tensor, window: int = 9) -> Tensor:
    """Return 1 - squared local normalised cross-correlation (VoxelMorph, Balakrishnan et al., arXiv:1809.05231).

    Per window Σab² / (Σa²·Σb² + 1e-5) over the voxels that count, with a and b the deviations from their means.

    Args:
        moved, fixed: (N, C, D, H, W).
        counts: (N, 1, D, H, W) bool, the voxels that are used, in windows and in the mean.
        window: side of a window in voxels, odd.

    Returns:
        A scalar in [0, 1]. A window in which either image is constant has no correlation and costs 1.
    """
    moved, fixed = at_least_float32(moved), at_least_float32(fixed)
    weight = counts.to(moved.dtype).expand_as(moved)
    total = _window_sums(weight, window).clamp(min=1e-6)
    rounding = 16 * torch.finfo(moved.dtype).eps

    def mean(values: Tensor) -> Tensor:
        return _window_sums(values * weight, window) / total

    def variance(values: Tensor, average: Tensor) -> Tensor:
        square = mean(values.square())
        spread = square - average.square()
        # Of a constant window only rounding is left, which must not correlate.
        return torch.where(spread > rounding * square, spread, torch.zeros_like(spread))

    a, b = mean(moved), mean(fixed)
    variances = variance(moved, a) * variance(fixed, b)
    covariance = torch.where(variances > 0, mean(moved * fixed) - a * b, torch.zeros_like(a))
    # The published constant stands beside a product of sums over the window; here both are means.
    constant = 1e-5 / (total * window**3).square()
    return mean_per_view(1 - covariance.square() / (variances + constant), counts)


def _window_sums(values: Tensor, window: int) -> Tensor:
    """Sum windows axis by axis, and divide by window³.

    By 2D pooling, because the gradient of torch's 3D pooling is not deterministic on GPUs.
    """
    n, c, d, h, w = values.shape
    tall, wide = (window, 1), (1, window)
    for plane, kernel in (((-1, 1, d, h * w), tall), ((-1, 1, h, w), tall), ((-1, 1, h, w), wide)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        values = F.avg_pool2d(values.reshape(plane), kernel, 1, padding)
    return values.view(n, c, d, h, w)


@full_precision
def roughness(field: Tensor, size: Size | None = None) -> Tensor:
    """Return the mean squared gradient of a displacement field: VoxelMorph's diffusion regulariser.

    Args:
        field: (N, 3, d, h, w) displacements in voxels, on a grid over the image.
        size: (D, H, W) of the image in voxels, by which the gradient does not depend on the grid; default: a cell of
            the grid is a voxel.
    """
    field = at_least_float32(field)
    grid = spatial_size(field)
    cells = [n / m for n, m in zip(size or grid, grid, strict=True)]
    slopes = [(field.diff(dim=2 + k) / cells[k]).square() for k in range(3) if grid[k] > 1]
    return torch.stack([slope.mean() for slope in slopes]).mean() if slopes else field.sum() * 0
