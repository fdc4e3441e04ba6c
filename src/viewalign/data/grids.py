"""Channels and masks of an image must share its voxel grid: whether two images do, and resampling one to another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from viewalign.data.readers.itk import sitk
from viewalign.errors import ExcludedImageError

if TYPE_CHECKING:
    from viewalign.data.readers.files import Volume


def grid_difference(volume: Volume, first: Volume) -> str:
    """Describe how the voxel grids of two images differ in size, voxel size, direction or origin; empty if equal."""
    if volume.array.shape != first.array.shape:
        return "×".join(map(str, volume.array.shape)) + " voxels instead of " + "×".join(map(str, first.array.shape))
    if not np.allclose(volume.spacing, first.spacing, rtol=1e-2):
        return "another voxel size"
    if not np.allclose(volume.direction, first.direction, atol=1e-2):
        return "another direction"
    shift = float(np.linalg.norm(np.subtract(volume.origin, first.origin)))
    return f"shifted by {shift:.1f} mm" if shift > 0.5 * min(first.spacing) else ""


def resample_to(volume: Volume, first: Volume) -> Volume:
    """Resample an image to the voxel grid of another by trilinear interpolation, with 0 outside the image.

    Raises:
        ExcludedImageError: the images do not overlap.
    """
    identity = sitk.Transform(3, sitk.sitkIdentity)
    moved = sitk.Resample(itk_image(volume), itk_image(first), identity, sitk.sitkLinear, 0.0)
    array = np.array(sitk.GetArrayViewFromImage(moved), dtype=np.float32)
    if not array.any():
        raise ExcludedImageError("the channels do not overlap")
    return replace(first, array=array, filled=volume.filled)


def itk_image(volume: Volume) -> Any:
    """Convert a volume to a SimpleITK image."""
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing[::-1])
    image.SetOrigin(volume.origin)
    image.SetDirection(np.asarray(volume.direction, dtype=float).ravel().tolist())
    return image
