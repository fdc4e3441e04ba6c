"""The segmentations of FOMO, tasks 2 and 4, as datasets of nnU-Net in the orientation of pretraining.

Missing sequences are images of zeros, as in prediction; `t2s` replaces a missing `swi`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from viewalign.compat import task_layouts
from viewalign.compat.fomo_tasks import (
    TASKS,
    FomoTask,
    label_file,
    sequences_in,
    sessions,
    task_folder,
    used_channels,
)
from viewalign.compat.task_conversion import ConvertSettings
from viewalign.data.grids import grid_difference, resample_to
from viewalign.data.readers.files import Volume, read_mask
from viewalign.data.readers.headers import read_header
from viewalign.errors import ExcludedImageError, UserError
from viewalign.finetuning.segmentation import predict
from viewalign.finetuning.segmentation.predict import KEY
from viewalign.tasks.preprocessing import read_image
from viewalign.tasks.spec import ChannelSpec
from viewalign.utils.outputs import check_folder
from viewalign.utils.settings import Settings

_ENDING = ".nii.gz"


class FomoSettings(Settings):
    """Task of the challenge."""

    task: Literal[1, 2, 3, 4, 5] = Field(
        description="1 (infarct), 2 (meningioma, a segmentation), 3 (age), 4 (trigeminal nerve and vessel, a "
        "segmentation) or 5 (polymicrogyria). Tasks 6 and 7 have no data: see fomo submission."
    )


def convert_task(source: Path, out: Path, number: int) -> tuple[int, list[str]]:
    """Convert a task's fine-tuning data: 1, 3 and 5 to a task with a manifest, 2 and 4 to a dataset of nnU-Net.

    Returns:
        Number of cases, and a message for each excluded session.

    Raises:
        UserError: no session can be used, or `out` has other contents.
    """
    if TASKS[number].kind == "segmentation":
        names, left_out = prepare(source, out, number)
        return len(names), left_out
    found = task_layouts.convert("fomo", source, out, ConvertSettings.model_validate({"task": number}))
    return len(found.cases), list(found.left_out)


def prepare(source: Path, out: Path, number: int = 2) -> tuple[list[str], list[str]]:
    """Write the dataset of a segmentation in nnU-Net's layout.

    Args:
        source: folder of the challenge.
        out: folder of the dataset, for `viewalign finetune segmentation`.
        number: of the task, 2 or 4.

    Returns:
        Names of the cases, and a message for each excluded session.

    Raises:
        UserError: no session can be used, or `out` is not empty.
    """
    check_folder(out, "dataset")
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True, exist_ok=True)
    task, root = TASKS[number], task_folder(source, number)
    found = sessions(root)
    channels = used_channels([session for _, session in found], task)
    names, left_out = [], []
    for subject, session in found:
        name = f"{subject}_{session.name}"
        try:
            mask = label_file(root, subject, session.name, "seg.nii.gz")
            _write_case(sequences_in(session, channels), channels, mask, task, name, out)
            names.append(name)
        except UserError as problem:
            left_out.append(f"{name}: {problem}.")
    if not names:
        reason = left_out[0] if left_out else "There is no sub-*/ses-* or sub_*/ses_*."
        raise UserError(f"No session of {source} can be used. {reason}")
    (out / "dataset.json").write_text(json.dumps(_description(task, channels, len(names)), indent=1) + "\n")
    return names, left_out


def _description(task: FomoTask, channels: Sequence[ChannelSpec], count: int) -> dict[str, object]:
    return {
        "channel_names": {str(k): channel.name for k, channel in enumerate(channels)},
        "labels": {name: k for k, name in enumerate(("background", *task.labels))},
        "numTraining": count,
        "file_ending": _ENDING,
        KEY: {
            "orientation": "LPS",
            "missing": "zeros",
            "aliases": {channel.name: list(channel.aliases) for channel in channels if channel.aliases},
        },
    }


def _write_case(
    files: dict[str, Path], channels: Sequence[ChannelSpec], mask: Path, task: FomoTask, name: str, out: Path
) -> None:
    volumes: dict[str, Volume] = {}
    for word, path in files.items():
        try:
            volumes[word] = read_image(path)
        except UserError as problem:
            raise ExcludedImageError(f"{path.name}: {problem}") from None
    if not volumes:
        raise ExcludedImageError("has none of this task's sequences")
    first, labels = _labels(mask, volumes, len(task.labels))
    # All images are read and resampled before the first is written, so that no case is incomplete.
    images = []
    for channel in channels:
        found = next((volumes[word] for word in channel.words if word in volumes), None)
        volume = replace(first, array=np.zeros_like(first.array)) if found is None else found
        images.append(resample_to(volume, first) if grid_difference(volume, first) else volume)
    for number, volume in enumerate(images):
        predict.write_image(predict.to_lps(volume), out / "imagesTr" / f"{name}_{number:04d}{_ENDING}")
    lps = predict.to_lps(replace(first, array=labels.astype(np.float32)))
    predict.write_labels(lps.array.astype(np.uint8), lps, out / "labelsTr" / f"{name}{_ENDING}", lps=False)


def _labels(file: Path, volumes: dict[str, Volume], count: int) -> tuple[Volume, NDArray[np.uint8]]:
    """Return the image with the voxel grid of the mask, and the mask with labels up to `count`.

    Raises:
        ExcludedImageError: the mask does not have the grid of any sequence, or has other labels.
    """
    header = read_header(file)
    empty = np.broadcast_to(np.float32(0), header.shape)
    mask = Volume(empty, header.spacing, header.origin, header.direction)
    differences = {word: grid_difference(mask, volume) for word, volume in volumes.items()}
    first = next((volumes[word] for word, difference in differences.items() if not difference), None)
    if first is None:
        word, difference = next(iter(differences.items()))
        raise ExcludedImageError(f"the mask {file.name} has the voxel grid of no sequence ({word}: {difference})")
    labels = read_mask(file, first)
    if count == 1:
        return first, (labels > 0).astype(np.uint8)
    if labels.max() > count:
        raise ExcludedImageError(f"the mask {file.name} has the label {labels.max()}; this task has 0 to {count}")
    return first, labels
