"""Reconstruction errors over masked or valid voxels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from viewalign.losses.reduction import mean_per_view
from viewalign.utils.precision import at_least_float32


def masked_huber(prediction: Tensor, target: Tensor, counts: Tensor, delta: float = 1.0) -> Tensor:
    """Return the Huber loss over the voxels that count.

    Args:
        prediction, target: (N, C, D, H, W).
        counts: (N, 1, D, H, W) bool, such as voxels that are both masked and valid.
        delta: error at which the loss changes from quadratic to linear, in units of the normalised image.

    Example:
        >>> image, target = torch.randn(2, 2, 1, 32, 32, 32)
        >>> masked_huber(image, target, counts=torch.rand(2, 1, 32, 32, 32) < 0.75)
    """
    error = F.huber_loss(at_least_float32(prediction), at_least_float32(target), reduction="none", delta=delta)
    return mean_per_view(error, counts)


def masked_l1(prediction: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Return the mean absolute error over the voxels that count; arguments as for `masked_huber`."""
    return mean_per_view((at_least_float32(prediction) - at_least_float32(target)).abs(), counts)


def masked_mse(prediction: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Return the mean squared error over the voxels that count; arguments as for `masked_huber`."""
    return mean_per_view((at_least_float32(prediction) - at_least_float32(target)).square(), counts)
