"""Dice and normalised surface distance of one class in one case."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from viewalign.errors import UserError

Mask = NDArray[np.bool_]


def dice(prediction: Mask, reference: Mask) -> float:
    """Return 2|A∩B| / (|A|+|B|); NaN where both masks are empty."""
    total = int(prediction.sum()) + int(reference.sum())
    return float("nan") if total == 0 else 2.0 * int((prediction & reference).sum()) / total


def surface_dice(prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float) -> float:
    """Return the normalised surface distance at a tolerance (Nikolov et al., arXiv:1809.04430, equation 2).

    It is the area of both surfaces that lies within `tolerance` of the other, over the area of both. Areas are those of
    marching-cubes surface elements between voxel centres, as in DeepMind's code, computed by MONAI.

    Args:
        prediction: mask (D, H, W).
        reference: mask (D, H, W).
        spacing: voxel size in mm along (D, H, W).
        tolerance: in mm, not negative.

    Returns:
        A share in [0, 1]; NaN where both masks are empty, 0 where one is.
    """
    if not prediction.any() or not reference.any():
        return 0.0 if prediction.any() or reference.any() else float("nan")
    compute = _monai()
    # Distances are taken between the two surfaces alone, so what lies outside both, but for a rim, changes nothing.
    box = _box(prediction | reference)
    pair = [torch.from_numpy(np.pad(mask[box], 1))[None, None].float() for mask in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of its own deprecations
        limits = {"class_thresholds": [float(tolerance)], "spacing": list(spacing)}
        return float(compute(*pair, **limits, include_background=True, use_subvoxels=True))


def _monai() -> Callable[..., torch.Tensor]:
    try:
        from monai.metrics.surface_dice import compute_surface_dice
    except ImportError:
        raise UserError("Surface distances need MONAI and SciPy: pip install 'viewalign[tasks]'") from None
    found: Callable[..., torch.Tensor] = compute_surface_dice
    return found


def _box(mask: Mask) -> tuple[slice, ...]:
    """Return the slices of the smallest box around a mask."""
    spans = []
    for axis in range(mask.ndim):
        others = tuple(k for k in range(mask.ndim) if k != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(spans)
