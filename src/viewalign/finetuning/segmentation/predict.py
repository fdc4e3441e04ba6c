"""Images in the frame of pretraining (LPS) for nnU-Net, which reorients nothing, and masks back in the input's own."""

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
from viewalign.data.readers.files import Volume, voxel_to_world
from viewalign.data.readers.itk import sitk
from viewalign.errors import ExcludedImageError, UserError
from viewalign.finetuning.segmentation import environment
from viewalign.finetuning.segmentation import nnunet as running
from viewalign.finetuning.segmentation.nnunet import Machine
from viewalign.tasks.manifest import TaskCase, read_manifest
from viewalign.tasks.preprocessing import frame_difference, itk_image, onto, read_image
from viewalign.tasks.spec import ChannelSpec, TaskSpec
from viewalign.utils.io import atomic_write
from viewalign.weights import files
from viewalign.weights.files import CHECKPOINT


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


KEY = "viewalign"
"""In `dataset.json`: `{"orientation": "LPS", "missing": "zeros", "aliases": {"swi": ["t2s"]}}`."""


@dataclass(frozen=True)
class Trained:
    """A trained segmentation.

    Attributes:
        folder: nnU-Net's, with `plans.json`, `dataset.json` and `fold_*`.
        folds: whose networks are averaged.
        channels: names, in order.
        ending: of its images' names.
        facts: what `KEY` holds; empty for a dataset that viewalign did not write.
    """

    folder: Path
    folds: tuple[int | str, ...]
    channels: tuple[str, ...]
    ending: str
    facts: Mapping[str, Any]

    @property
    def specs(self) -> tuple[ChannelSpec, ...]:
        """The channels with their other names, as a manifest has them."""
        optional = self.facts.get("missing") == "zeros"
        aliases = self.facts.get("aliases", {})
        return tuple(ChannelSpec(name=c, aliases=tuple(aliases.get(c, ())), optional=optional) for c in self.channels)


def is_segmentation(folder: Path) -> bool:
    """Tell whether a folder is that of a fine-tuned segmentation, or nnU-Net's own of a trained model."""
    return folder.is_dir() and _model_folder(folder) is not None


def _model_folder(folder: Path) -> Path | None:
    if (folder / "plans.json").is_file() and (folder / "dataset.json").is_file():
        return folder
    told = files.read_json(folder / "results.json").get("model")
    if isinstance(told, str):
        return Path(told)
    found = sorted(file.parent for file in folder.glob("*/*/plans.json") if (file.parent / "dataset.json").is_file())
    return found[0] if len(found) == 1 else None


def read_trained(folder: Path) -> Trained:
    """Read what a trained segmentation asks for.

    Raises:
        UserError: no model there, or one that is not trained to its end.
    """
    model = _model_folder(folder)
    if model is None:
        raise UserError(f"{folder} holds no trained segmentation: no results.json, and no plans.json of nnU-Net.")
    description = files.read_json(model / "dataset.json")
    found = sorted(path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{CHECKPOINT}"))
    own = [str(row["fold"]) for row in files.read_json(folder / "results.json").get("results", [])]
    folds = tuple(int(f) if f.isdigit() else f for f in found if not own or f in own)
    if not description or not folds:
        raise UserError(f"{model} holds no trained fold (fold_*/{CHECKPOINT}); has the fine-tuning come to its end?")
    names = description.get("channel_names") or description["modality"]
    channels = tuple(str(names[key]) for key in sorted(names, key=int))
    facts = description.get(KEY)
    return Trained(model, folds, channels, str(description["file_ending"]), facts if isinstance(facts, dict) else {})


def cases_in(given: Path, trained: Trained) -> list[TaskCase]:
    """List cases of a folder in nnU-Net's naming (`CASE_0000.nii.gz`) or of a manifest (`image.<channel>`).

    Raises:
        UserError: neither.
    """
    if given.is_file():
        spec = TaskSpec(name=trained.folder.name, kind="regression", channels=trained.specs)
        return read_manifest(given, spec, targets=False)
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(given.glob(f"*_[0-9][0-9][0-9][0-9]{trained.ending}")):
        name, _, number = file.name.removesuffix(trained.ending).rpartition("_")
        if int(number) < len(trained.channels):
            found.setdefault(name, {})[trained.channels[int(number)]] = file
    if not found:
        raise UserError(f"{given} is no manifest, and holds no images named CASE_0000{trained.ending}.")
    return [TaskCase(name, name, images) for name, images in found.items()]


def predict(
    trained: Trained, cases: Sequence[TaskCase], out: Path, machine: Machine, flips: bool = False
) -> list[tuple[str, str]]:
    """Segment cases; each gets `CASE.nii.gz` (or the dataset's ending) on the voxels of its first image.

    Args:
        trained: from `read_trained`.
        cases: images by channel name or alias, the first of them giving the voxels.
        out: folder of masks.
        machine: what is computed on.
        flips: average over mirrored images too, where the model was trained with mirroring.

    Returns:
        Name and reason of each case that could not be used.
    """
    environment.check_installed()
    os.environ.update(environment.variables(None))
    os.environ.setdefault("nnUNet_def_n_proc", str(machine.processes))
    firsts: dict[str, Volume] = {}
    excluded = []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="viewalign-") as scratch:
        images, masks = Path(scratch) / "images", Path(scratch) / "masks"
        images.mkdir()
        for case in cases:
            try:
                firsts[case.case] = _write_case(trained, case, images)
            except UserError as problem:
                excluded.append((case.case, str(problem)))
                for file in images.glob(f"{case.case}_[0-9][0-9][0-9][0-9]{trained.ending}"):
                    file.unlink()
        if firsts:
            with running.quietly(Path(scratch) / "nnunet.log"):
                running.predict(trained.folder, images, masks, trained.folds, machine, flips)
        for name, first in firsts.items():
            _keep(masks / f"{name}{trained.ending}", out / f"{name}{trained.ending}", first, trained)
    return excluded


def _write_case(trained: Trained, case: TaskCase, folder: Path) -> Volume:
    """Write a case's channels as nnU-Net wants them; returns the image whose voxels the mask will have."""
    chosen = [next((w for w in (c.name, *c.aliases) if w in case.images), None) for c in trained.specs]
    lacking = [c.name for c, word in zip(trained.specs, chosen, strict=True) if word is None and not c.optional]
    if lacking or not any(chosen):
        raise ExcludedImageError(f"has no image of {', '.join(lacking or trained.channels)}")
    words = [word for word in case.images if word in chosen]
    volumes: dict[str, Volume] = {}
    for word in words:
        try:
            volumes[word] = read_image(case.images[word])
        except UserError as problem:
            raise ExcludedImageError(f"{case.images[word].name}: {problem}") from None
    first = volumes[words[0]]
    turns = trained.facts.get("orientation") == "LPS"
    for number, name in enumerate(chosen):
        if name is None:
            one = Volume(first.array * 0, first.spacing, first.origin, first.direction)
        else:
            one = volumes[name]
            odd = frame_difference(one, first)
            if odd and not turns:
                raise ExcludedImageError(f"{case.images[name].name} lies in another frame than {words[0]}: {odd}")
            one = onto(one, first) if odd else one
        write_image(to_lps(one) if turns else one, folder / f"{case.case}_{number:04d}{trained.ending}")
    return first


def _keep(mask: Path, out: Path, first: Volume, trained: Trained) -> None:
    with atomic_write(out) as partial:
        if trained.facts.get("orientation") == "LPS":
            write_labels(read_labels(mask), first, partial, lps=True)
        else:
            shutil.copyfile(mask, partial)
