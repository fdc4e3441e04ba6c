"""The voxels of a stack, decoded slice by slice by GDCM, so that memory holds one volume and one file."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import RefusedImageError
from viewalign.volumes.dicom.stacks import Stack
from viewalign.volumes.itk import itk_messages, itk_reason, sitk


def read_voxels(stack: Stack) -> NDArray[np.float32]:
    """Read all voxels as float32 (D, H, W); slope and intercept of each file are applied.

    Raises:
        RefusedImageError: a file is damaged; the reason names it.
    """
    array = np.empty(stack.shape, dtype=np.float32)
    numbered = enumerate(stack.frames)
    for path, group in groupby(numbered, key=lambda item: item[1].path):
        pixels = _pixels(path)
        for place, frame in group:
            if pixels.shape[1:] != frame.size or frame.number >= len(pixels):
                raise RefusedImageError(f"the slice {path.name} has another size than its header says")
            array[place] = pixels[frame.number]
    return array


def _pixels(path: Path) -> NDArray[np.float32]:
    try:
        with itk_messages():
            image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    except (RuntimeError, MemoryError) as error:
        reason = itk_reason(error) if isinstance(error, RuntimeError) else "not enough memory"
        raise RefusedImageError(f"the slice {path.name} is damaged: {reason}") from None
    pixels: NDArray[np.float32] = sitk.GetArrayFromImage(image)
    return pixels.reshape(-1, *pixels.shape[-2:])
