"""Smooth random fields, and where a deformed subject's voxels come from in the template."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BENDS = ((20.0, 2.5), (10.0, 0.8))
"""(width, size) in mm of the displacements: broad ones of some mm and narrower, smaller ones. Steeper would fold."""

Field = NDArray[np.float32]


def smooth_field(rng: np.random.Generator, shape: tuple[int, int, int], spacing: float, width: float) -> Field:
    """Draw a smooth random field of zero mean and unit deviation.

    Args:
        rng: where the noise comes from.
        shape: of the field, in voxels.
        spacing: of the voxels, in mm.
        width: deviation of the Gaussian that smooths white noise, in mm.

    Returns:
        float32 of `shape`.
    """
    # White noise on coarse nodes, spread by Gaussians: smoothing and interpolation in one product per axis.
    node = width / 2
    matrices = []
    for n in shape:
        nodes = np.arange(-4 * width, n * spacing + 4 * width, node)
        bumps = np.exp(-0.5 * ((spacing * np.arange(n)[:, None] - nodes) / width) ** 2)
        matrices.append((bumps / np.linalg.norm(bumps, axis=1, keepdims=True)).astype(np.float32))
    field = rng.standard_normal([matrix.shape[1] for matrix in matrices], dtype=np.float32)
    for matrix in matrices:
        # The axis worked on moves to the end each time, so that after three all are in order again.
        field = np.tensordot(field, matrix, axes=([0], [1]))
    return field


def displacement(rng: np.random.Generator, shape: tuple[int, int, int], spacing: float) -> Field:
    """Draw displacements in mm, float32 (3, *shape): a few mm, smooth enough that nothing folds."""
    total = np.zeros((3, *shape), dtype=np.float32)
    for axis in range(3):
        for width, size in _BENDS:
            total[axis] += np.float32(size) * smooth_field(rng, shape, spacing, width)
    return total


def mild_affine(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a 3×3 matrix: turns of up to 8° about each axis, scales of 0.92 to 1.08, shears of up to 0.03."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-8, 8, size=3))):
        one, other = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[one, one] = step[other, other] = np.cos(angle)
        step[one, other], step[other, one] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    shear = np.eye(3) + np.triu(rng.uniform(-0.03, 0.03, size=(3, 3)), k=1)
    return np.asarray(turn @ shear @ np.diag(rng.uniform(0.92, 1.08, size=3)))
