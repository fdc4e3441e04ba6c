"""The probe of the demo on labelled images, whose subjects are excluded from pretraining."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from viewalign.data.catalogue import Collection, Record
from viewalign.data.file_types import SUFFIXES, suffix_of
from viewalign.data.settings import PrepareSettings
from viewalign.demo import cohort
from viewalign.errors import ExcludedImageError
from viewalign.evaluation.voxel_features import EncoderFeatures
from viewalign.evaluation.voxel_probe import Case, VoxelProbeSettings, compare, read_prepared
from viewalign.utils.io import write_json
from viewalign.utils.precision import choose_device
from viewalign.utils.rng import make_rng
from viewalign.weights.encoder import build_untrained, load_encoder
from viewalign.weights.run_folder import RunFolder

_log = logging.getLogger(__name__)

_FOLDERS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}
_ENDINGS = ("_seg", "_label", "_labels", "_dseg")
_MAX_SUBJECTS, _MIN_SUBJECTS, _TRAIN_FRACTION = 10, 4, 0.4


@dataclass(frozen=True)
class Labelled:
    """An image with its label map."""

    record: Record
    labels: Path


@dataclass(frozen=True)
class Holdout:
    """Labelled images for training and testing the probe, one per subject."""

    train: tuple[Labelled, ...] = ()
    test: tuple[Labelled, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.train and self.test)

    @property
    def subjects(self) -> set[str]:
        """Ids of the subjects to exclude from pretraining."""
        return {labelled.record.subject_id for labelled in (*self.train, *self.test)}


def find_labels(image: Path) -> Path | None:
    """Return the label map of an image: `x_seg` next to `x`, or the file of the same name in `labels/`.

    nnU-Net's `imagesTr/x_0000` and `labelsTr/x` are supported.
    """
    stem = image.name.removesuffix(suffix_of(image.name) or "")
    folder = _FOLDERS.get(image.parent.name)
    names = [image.parent / (stem + ending) for ending in _ENDINGS]
    if folder is not None:
        sibling = image.parent.parent / folder
        names += [sibling / stem, sibling / stem.removesuffix("_0000")]
    return next((path for name in names for path in _with_suffixes(name) if path.is_file()), None)


def hold_out(records: Iterable[Record], seed: int) -> Holdout:
    """Choose up to ten labelled subjects for the probe: two fifths for training, the others for testing.

    At least half of all subjects are kept for pretraining. Nothing is held out if that leaves fewer than four.
    """
    records = list(records)
    first: dict[str, Labelled] = {}
    for record in records:
        labels = find_labels(record.path)
        if labels is not None:
            first.setdefault(record.subject_id, Labelled(record, labels))
    count = min(_MAX_SUBJECTS, len(first), len({record.subject_id for record in records}) // 2)
    if count < _MIN_SUBJECTS:
        return Holdout()
    drawn = make_rng(seed, "holdout").permutation(sorted(first))[:count].tolist()
    # Evenly over modalities, so that those in the test cases are also in the training cases.
    order = sorted(drawn, key=lambda name: first[name].record.modality)
    train = {order[round(k)] for k in np.linspace(0, count - 1, round(_TRAIN_FRACTION * count))}
    test = set(order) - train
    return Holdout(*(tuple(first[name] for name in sorted(part)) for part in (train, test)))


def without(collection: Collection, subjects: set[str]) -> Collection:
    """Return a catalogue without some subjects, named by their full ids."""
    datasets = {}
    for key, dataset in collection.datasets.items():
        prefix = f"{collection.collection_name}__{key}__"
        kept = {name: subject for name, subject in dataset.subjects.items() if prefix + name not in subjects}
        if kept:
            datasets[key] = replace(dataset, subjects=kept)
    return replace(collection, datasets=datasets)


def load_cases(chosen: Sequence[Labelled], settings: PrepareSettings) -> Iterator[Case | str]:
    """Yield labelled images, prepared as in the store, or a message if one cannot be used."""
    for labelled in chosen:
        record = labelled.record
        # Not the full id, which contains the name of the folder: the name seeds the choice of voxels.
        name = "__".join((record.subject, record.session, record.name))
        try:
            yield read_prepared(name, record.path, labelled.labels, settings)
        except ExcludedImageError as exclusion:
            yield f"{record.path} is excluded from the probe: {exclusion}"


def _with_suffixes(name: Path) -> Iterator[Path]:
    for suffix in SUFFIXES:
        yield name.with_name(name.name + suffix)


_NAMES = {
    "pretrained": "features of the pretrained encoder",
    "untrained": "features of the same network untrained",
    "intensity": "plain intensities",
}


def probe_run(run: RunFolder, held: Holdout, preparation: PrepareSettings, synthetic: bool) -> None:
    """Probe a run and write its `probe.json`.

    Args:
        run: a completed run.
        held: labelled images that were excluded from the run.
        preparation: preprocessing of the run's store.
        synthetic: whether the images are the demo's cohort.

    Raises:
        UserError: the labelled images cannot be used.
    """
    recipe = run.recipe()
    device = choose_device()
    train, test = (_cases(chosen, preparation) for chosen in (held.train, held.test))
    result = compare(
        EncoderFeatures(load_encoder(run.root), device),
        EncoderFeatures(build_untrained(recipe, recipe.seed), device),
        train,
        test,
        task=_task(synthetic, train),
        settings=VoxelProbeSettings(seed=recipe.seed),
        note=cohort.NOTE if synthetic else "",
        on_part=lambda name: _log.info("  %s", _NAMES[name]),
    )
    write_json(run.root / "probe.json", result)


def _cases(chosen: Sequence[Labelled], preparation: PrepareSettings) -> list[Case]:
    cases = []
    for case in load_cases(chosen, preparation):
        if isinstance(case, str):
            _log.info("  %s", case)
        else:
            cases.append(case)
    return cases


def _task(synthetic: bool, train: Sequence[Case]) -> str:
    if synthetic:
        return f"Tissue of a voxel ({', '.join(cohort.LABELS.values())}) on a synthetic cohort"
    labels = sorted({int(label) for case in train for label in set(case.labels.ravel().tolist())})
    return f"Label of a voxel ({', '.join(map(str, labels))})"
