"""FOMO25's task 2, meningioma segmentation, as a dataset of nnU-Net in the orientation of pretraining.

The source has `preprocessed/sub_N/ses_1/<sequence>.nii.gz` and `labels/sub_N/[ses_1/]seg.nii.gz`. Missing sequences are
images of zeros, as in prediction; `t2s` replaces a missing `swi`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from viewalign.compat import task_layouts
from viewalign.compat.task_conversion import ConvertSettings
from viewalign.compat.task_layouts import SEQUENCES, sequences_in, sessions
from viewalign.data.readers.files import Volume, read_mask
from viewalign.data.readers.headers import read_header
from viewalign.errors import ExcludedImageError, UserError
from viewalign.finetuning.segmentation import predict
from viewalign.finetuning.segmentation.predict import KEY
from viewalign.tasks.preprocessing import grid_difference, read_image, resample_to
from viewalign.utils.settings import Settings

_CHANNELS = SEQUENCES[2]
_ENDING = ".nii.gz"


class FomoSettings(Settings):
    """Task of the challenge."""

    task: Literal[1, 2, 3] = Field(description="1 (infarct), 2 (meningioma, a segmentation) or 3 (age).")


def convert_task(source: Path, out: Path, task: int) -> tuple[int, list[str]]:
    """Convert a task: 1 and 3 to a task with a manifest, 2 to a dataset of nnU-Net.

    Returns:
        Number of cases, and a message for each excluded session.

    Raises:
        UserError: no session can be used, or `out` has other contents.
    """
    if task == 2:
        names, left_out = prepare(source, out)
        return len(names), left_out
    found = task_layouts.convert("fomo", source, out, ConvertSettings(task=1 if task == 1 else 3))
    return len(found.cases), list(found.left_out)


def prepare(source: Path, out: Path) -> tuple[list[str], list[str]]:
    """Write a dataset in nnU-Net's layout.

    Args:
        source: folder of the challenge.
        out: folder of the dataset, for `viewalign finetune segmentation`.

    Returns:
        Names of the cases, and a message for each excluded session.

    Raises:
        UserError: no session can be used, or `out` is not empty.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; choose another folder.")
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True, exist_ok=True)
    names, left_out = [], []
    for subject, session in sessions(source):
        name = f"{subject}_{session.name}"
        try:
            _write_case(source, subject, session, name, out)
            names.append(name)
        except UserError as problem:
            left_out.append(f"{name}: {problem}.")
    if not names:
        raise UserError(
            f"No session of {source} can be used. {left_out[0] if left_out else 'There is no sub_*/ses_*.'}"
        )
    (out / "dataset.json").write_text(json.dumps(_description(len(names)), indent=1) + "\n")
    return names, left_out


def _description(count: int) -> dict[str, object]:
    return {
        "channel_names": {str(k): channel.name for k, channel in enumerate(_CHANNELS)},
        "labels": {"background": 0, "meningioma": 1},
        "numTraining": count,
        "file_ending": _ENDING,
        KEY: {
            "orientation": "LPS",
            "missing": "zeros",
            "aliases": {channel.name: list(channel.aliases) for channel in _CHANNELS if channel.aliases},
        },
    }


def _write_case(source: Path, subject: str, session: Path, name: str, out: Path) -> None:
    volumes: dict[str, Volume] = {}
    for word, path in sequences_in(session, _CHANNELS).items():
        try:
            volumes[word] = read_image(path)
        except UserError as problem:
            raise ExcludedImageError(f"{path.name}: {problem}") from None
    if not volumes:
        raise ExcludedImageError("has none of this task's sequences")
    first, labels = _labels(_label_file(source, subject, session.name), volumes)
    # All images are read and resampled before the first is written, so that no case is incomplete.
    images = []
    for channel in _CHANNELS:
        found = next((volumes[word] for word in channel.words if word in volumes), None)
        volume = replace(first, array=np.zeros_like(first.array)) if found is None else found
        images.append(resample_to(volume, first) if grid_difference(volume, first) else volume)
    for number, volume in enumerate(images):
        predict.write_image(predict.to_lps(volume), out / "imagesTr" / f"{name}_{number:04d}{_ENDING}")
    lps = predict.to_lps(replace(first, array=labels.astype(np.float32)))
    predict.write_labels(lps.array.astype(np.uint8), lps, out / "labelsTr" / f"{name}{_ENDING}", lps=False)


def _label_file(source: Path, subject: str, session: str) -> Path:
    base = source / "labels" / subject
    for path in (base / session / "seg.nii.gz", base / "seg.nii.gz"):
        if path.is_file():
            return path
    raise ExcludedImageError("has no seg.nii.gz")


def _labels(file: Path, volumes: dict[str, Volume]) -> tuple[Volume, NDArray[np.uint8]]:
    """Return the image with the voxel grid of the mask, and the mask.

    Raises:
        ExcludedImageError: the mask does not have the grid of any sequence.
    """
    header = read_header(file)
    empty = np.broadcast_to(np.float32(0), header.shape)
    mask = Volume(empty, header.spacing, header.origin, header.direction)
    differences = {word: grid_difference(mask, volume) for word, volume in volumes.items()}
    first = next((volumes[word] for word, difference in differences.items() if not difference), None)
    if first is None:
        word, difference = next(iter(differences.items()))
        raise ExcludedImageError(f"the mask {file.name} has the voxel grid of no sequence ({word}: {difference})")
    return first, (read_mask(file, first) > 0).astype(np.uint8)
