"""Predict segmentations: images in the orientation of pretraining (LPS) for nnU-Net, masks in that of the input."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.geometry import reorientation_to_lps
from viewalign.data.grids import grid_difference, itk_image, resample_to
from viewalign.data.readers.files import Volume, voxel_to_world
from viewalign.data.readers.itk import sitk
from viewalign.errors import EmptyImageError, ExcludedImageError, UserError
from viewalign.finetuning.segmentation import environment, nnunet
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.tasks.manifest import TaskCase, read_manifest
from viewalign.tasks.preprocessing import read_image
from viewalign.tasks.spec import ChannelSpec, TaskSpec, distinct
from viewalign.utils.io import atomic_write, write_json
from viewalign.utils.outputs import check_folder
from viewalign.weights import files
from viewalign.weights.files import CHECKPOINT


def to_lps(volume: Volume) -> Volume:
    """Permute and flip the axes of an image to LPS; world coordinates of voxels do not change."""
    turn = reorientation_to_lps(volume.direction)
    first, columns = np.array([0.0, 0.0, 0.0, 1.0]), []
    for axis, flip in zip(turn.axes, turn.flips, strict=True):
        first[axis] = volume.array.shape[axis] - 1 if flip else 0
        # Columns of a direction are in the order x, y, z: the reverse of the array's axes.
        columns.append(volume.direction[:, 2 - axis] * (-1.0 if flip else 1.0))
    world = voxel_to_world(volume.spacing, volume.origin, volume.direction)
    x, y, z = (world @ first)[:3].tolist()
    d, h, w = (volume.spacing[axis] for axis in turn.axes)
    array, direction = np.ascontiguousarray(turn.apply(volume.array)), np.stack(columns[::-1], axis=1)
    return Volume(array, (d, h, w), (x, y, z), direction, volume.filled)


def write_image(volume: Volume, file: Path) -> None:
    """Write an image with its geometry."""
    sitk.WriteImage(itk_image(volume), str(file), useCompression=True)


def write_labels(labels: NDArray[np.integer], like: Volume, file: Path, lps: bool) -> None:
    """Write labels (D, H, W) on the grid of an image; `lps` if they are in its LPS orientation.

    Their numbers are uint8, or uint16 above 255, as in nnU-Net.
    """
    array = reorientation_to_lps(like.direction).invert(labels) if lps else labels
    number = np.uint8 if array.max() < 256 else np.uint16
    file.parent.mkdir(parents=True, exist_ok=True)
    write_image(replace(like, array=np.ascontiguousarray(array).astype(number)), file)


def read_labels(file: Path) -> NDArray[np.integer]:
    """Read labels (D, H, W) written by nnU-Net."""
    labels: NDArray[np.integer] = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    return labels


_BATCH_BYTES = 4 << 30
"""Images of new cases that are in the temporary folder together."""
KEY = "viewalign"
"""Key in `dataset.json` of, for example, `{"orientation": "LPS", "missing": "zeros", "aliases": {"swi": ["t2s"]}}`."""


@dataclass(frozen=True)
class Trained:
    """A trained segmentation.

    Attributes:
        folder: nnU-Net's folder with `plans.json`, `dataset.json` and `fold_*`.
        folds: whose networks are averaged.
        channels: different names, in order.
        ending: file name extension of images.
        facts: value of `KEY`; empty for a dataset that viewalign did not write.
    """

    folder: Path
    folds: tuple[int | str, ...]
    channels: tuple[str, ...]
    ending: str
    facts: Mapping[str, Any]

    @property
    def specs(self) -> tuple[ChannelSpec, ...]:
        """The channels with their aliases."""
        optional = self.facts.get("missing") == "zeros"
        aliases = self.facts.get("aliases", {})
        return tuple(ChannelSpec(name=c, aliases=tuple(aliases.get(c, ())), optional=optional) for c in self.channels)


def is_segmentation(folder: Path) -> bool:
    """Return whether a folder is that of a fine-tuning for segmentation, or nnU-Net's folder of a trained model."""
    return folder.is_dir() and _model_folder(folder) is not None


def _model_folder(folder: Path) -> Path | None:
    if (folder / "plans.json").is_file() and (folder / "dataset.json").is_file():
        return folder
    model = files.read_json(folder / "results.json").get("model")
    if isinstance(model, str):
        return folder / model
    found = sorted(file.parent for file in folder.glob("*/*/plans.json") if (file.parent / "dataset.json").is_file())
    return found[0] if len(found) == 1 else None


def read_trained(folder: Path) -> Trained:
    """Read the description of a trained segmentation.

    Raises:
        UserError: no model, or its training is not complete.
    """
    model = _model_folder(folder)
    if model is None:
        raise UserError(f"{folder} has no trained segmentation: neither results.json nor plans.json of nnU-Net.")
    description = files.read_json(model / "dataset.json")
    found = sorted(path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{CHECKPOINT}"))
    own = [str(row["fold"]) for row in files.read_json(folder / "results.json").get("results", [])]
    folds = tuple(int(f) if f.isdigit() else f for f in found if not own or f in own)
    if not description or not folds:
        raise UserError(f"{model} has no trained fold (fold_*/{CHECKPOINT}); is the fine-tuning complete?")
    names = description.get("channel_names") or description["modality"]
    channels = tuple(distinct([str(names[key]) for key in sorted(names, key=int)]))
    facts = description.get(KEY)
    return Trained(model, folds, channels, str(description["file_ending"]), facts if isinstance(facts, dict) else {})


def cases_in(path: Path, trained: Trained) -> list[TaskCase]:
    """List the cases of a folder with nnU-Net's file names (`CASE_0000.nii.gz`), or of a manifest (`image.<channel>`).

    Raises:
        UserError: neither.
    """
    if path.is_file():
        spec = TaskSpec(name=trained.folder.name, kind="regression", channels=trained.specs)
        return read_manifest(path, spec, targets=False)
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(path.glob(f"*_[0-9][0-9][0-9][0-9]{trained.ending}")):
        name, _, number = file.name.removesuffix(trained.ending).rpartition("_")
        if int(number) < len(trained.channels):
            found.setdefault(name, {})[trained.channels[int(number)]] = file
    if not found:
        raise UserError(f"{path} is not a manifest and has no images named CASE_0000{trained.ending}.")
    return [TaskCase(name, name, images) for name, images in found.items()]


def predict(
    trained: Trained, cases: Sequence[TaskCase], out: Path, machine: Machine, flips: bool = False
) -> list[tuple[str, str]]:
    """Segment cases and write `CASE.nii.gz` (or the dataset's extension) on the voxel grid of their first image.

    The model's `dataset.json` is written beside the masks.

    Args:
        trained: from `read_trained`.
        cases: images by channel name or alias.
        out: folder of masks.
        machine: devices and processes.
        flips: average over mirrored images, if training used mirroring.

    Returns:
        Name and reason of each unusable case.

    Raises:
        UserError: `out` is the folder of the images, or of a dataset.
    """
    sources = {image.parent.resolve() for case in cases for image in case.images.values()}
    if out.resolve() in sources or (out / "imagesTr").is_dir():
        raise UserError(f"{out} is not written: it is a folder of images. Name another folder with -o.")
    description = out / "dataset.json"
    check_folder(out, "folder of predictions", description.is_file())
    environment.check_installed()
    os.environ.update(environment.variables(None))
    os.environ.setdefault("nnUNet_def_n_proc", str(machine.processes))
    excluded: list[tuple[str, str]] = []
    remaining = list(cases)
    write_json(description, files.read_json(trained.folder / "dataset.json"))  # names the classes
    while remaining:
        with tempfile.TemporaryDirectory(prefix="viewalign-") as scratch:
            images, masks = Path(scratch) / "images", Path(scratch) / "masks"
            images.mkdir()
            grids = _write_batch(trained, remaining, images, excluded)
            if grids:
                with nnunet.quietly(Path(scratch) / "nnunet.log"):
                    nnunet.predict(trained.folder, images, masks, trained.folds, machine, flips)
            for name, grid in grids.items():
                _write_mask(masks / f"{name}{trained.ending}", out / f"{name}{trained.ending}", grid, trained)
    return excluded


def _write_batch(
    trained: Trained, remaining: list[TaskCase], images: Path, excluded: list[tuple[str, str]]
) -> dict[str, Volume]:
    """Write images of cases, which are taken from `remaining`, until a batch is full.

    Returns:
        The grid of each case: its first image without memory for voxels.
    """
    grids: dict[str, Volume] = {}
    written = 0
    while remaining and written < _BATCH_BYTES:
        case = remaining.pop(0)
        try:
            channels = _read_channels(trained, case)
        except UserError as problem:
            excluded.append((case.case, str(problem)))
            continue
        grids[case.case] = replace(channels.first, array=np.broadcast_to(np.float32(0), channels.first.array.shape))
        for number, volume in enumerate(channels.volumes):
            file = images / f"{case.case}_{number:04d}{trained.ending}"
            write_image(volume, file)
            written += file.stat().st_size
    return grids


@dataclass(frozen=True)
class _Channels:
    first: Volume
    """The image on whose voxel grid the mask is written."""
    volumes: list[Volume]
    """Channels for nnU-Net."""


def _read_channels(trained: Trained, case: TaskCase) -> _Channels:
    chosen = [next((word for word in channel.words if word in case.images), None) for channel in trained.specs]
    missing = [c.name for c, word in zip(trained.specs, chosen, strict=True) if word is None and not c.optional]
    if missing or not any(chosen):
        raise ExcludedImageError(f"has no image of {', '.join(missing or trained.channels)}")
    volumes: dict[str, Volume] = {}
    empty: list[str] = []
    for word in case.images:
        if word in chosen:
            try:
                volumes[word] = read_image(case.images[word])
            except EmptyImageError:
                empty.append(word)  # which stands for a missing channel in datasets of nnU-Net
            except UserError as problem:
                raise ExcludedImageError(f"{case.images[word].name}: {problem}") from None
    if not volumes:
        raise ExcludedImageError(f"{case.images[empty[0]].name}: all voxels are zero")
    shown, first = next(iter(volumes.items()))
    lps = trained.facts.get("orientation") == "LPS"
    channels = []
    for channel in chosen:
        volume = volumes[channel] if channel in volumes else replace(first, array=first.array * 0)
        difference = grid_difference(volume, first)
        if difference and not lps:
            raise ExcludedImageError(
                f"{case.images[str(channel)].name} is on another voxel grid than {shown}: {difference}"
            )
        volume = resample_to(volume, first) if difference else volume
        channels.append(to_lps(volume) if lps else volume)
    return _Channels(first, channels)


def _write_mask(mask: Path, out: Path, grid: Volume, trained: Trained) -> None:
    with atomic_write(out) as partial:
        if trained.facts.get("orientation") == "LPS":
            write_labels(read_labels(mask), grid, partial, lps=True)
        else:
            shutil.copyfile(mask, partial)
