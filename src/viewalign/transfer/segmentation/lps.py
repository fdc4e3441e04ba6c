"""Images in the frame of pretraining (LPS) for nnU-Net, which reorients nothing, and masks back in the input's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from viewalign.transfer.tasks.preparation import itk_image
from viewalign.volumes.itk import sitk
from viewalign.volumes.orientation import reorientation_to_lps
from viewalign.volumes.reading import Volume, voxel_to_world


def to_lps(volume: Volume) -> Volume:
    """Permute and flip an image's axes to LPS; every voxel stays where it is in the world."""
    turn = reorientation_to_lps(volume.direction)
    world = voxel_to_world(volume.spacing, volume.origin, volume.direction)
    first = [volume.array.shape[axis] - 1 if flip else 0 for axis, flip in _flips(turn.axes, turn.flips)]
    signs = [-1.0 if flip else 1.0 for _, flip in _flips(turn.axes, turn.flips)]
    index = np.zeros(4)
    index[3] = 1.0
    for (axis, _), at in zip(_flips(turn.axes, turn.flips), first, strict=True):
        index[axis] = at
    x, y, z = (world @ index)[:3].tolist()
    # Columns of a direction are in the order x, y, z: the reverse of the array's axes.
    columns = [volume.direction[:, 2 - axis] * sign for axis, sign in zip(turn.axes, signs, strict=True)][::-1]
    d, h, w = (volume.spacing[axis] for axis in turn.axes)
    return Volume(
        np.ascontiguousarray(turn.apply(volume.array)), (d, h, w), (x, y, z), np.stack(columns, axis=1), volume.filled
    )


def _flips(axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> list[tuple[int, bool]]:
    return list(zip(axes, flips, strict=True))


def write_image(volume: Volume, file: Path) -> None:
    """Write an image with its geometry."""
    sitk.WriteImage(itk_image(volume), str(file), useCompression=True)


def write_labels(labels: NDArray[np.integer], like: Volume, file: Path, lps: bool) -> None:
    """Write labels (D, H, W) as uint8 on the voxels of an image; `lps` where they are in that image's LPS frame."""
    turned = reorientation_to_lps(like.direction).invert(labels) if lps else labels
    image = itk_image(replace(like, array=np.ascontiguousarray(turned).astype(np.uint8)))
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file), useCompression=True)


def read_labels(file: Path) -> NDArray[np.uint8]:
    """Read labels (D, H, W) that nnU-Net wrote."""
    labels: NDArray[np.uint8] = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.uint8)
    return labels
