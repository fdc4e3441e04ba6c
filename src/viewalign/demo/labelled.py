"""Which images have label maps, and which of them the probe may have: those are kept out of pretraining."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from viewalign.errors import RefusedImageError
from viewalign.randomness import generator_of
from viewalign.transfer.probe import Case, read_prepared
from viewalign.volumes.catalogue import Collection, Record
from viewalign.volumes.filetypes import SUFFIXES, suffix_of
from viewalign.volumes.recipe import PrepareSettings

_FOLDERS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}
_ENDINGS = ("_seg", "_label", "_labels", "_dseg")
_MOST, _FEWEST, _TRAIN_SHARE = 10, 4, 0.4


@dataclass(frozen=True)
class Labelled:
    """An image with its label map."""

    record: Record
    labels: Path


@dataclass(frozen=True)
class Holdout:
    """Labelled images of different subjects, one each, for fitting the probe and for judging it."""

    train: tuple[Labelled, ...] = ()
    test: tuple[Labelled, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.train and self.test)

    @property
    def subjects(self) -> set[str]:
        """Ids of the subjects that pretraining must not see."""
        return {each.record.subject_id for each in (*self.train, *self.test)}


def find_labels(image: Path) -> Path | None:
    """Return the label map of an image: `x_seg` beside `x`, or its namesake in `labels/` beside `images/`.

    nnU-Net's `imagesTr/x_0000` and `labelsTr/x` are known too.
    """
    stem = image.name.removesuffix(suffix_of(image.name) or "")
    folder = _FOLDERS.get(image.parent.name)
    names = [image.parent / (stem + ending) for ending in _ENDINGS]
    if folder is not None:
        sibling = image.parent.parent / folder
        names += [sibling / stem, sibling / stem.removesuffix("_0000")]
    return next((path for name in names for path in _with_suffixes(name) if path.is_file()), None)


def hold_out(records: Iterable[Record], seed: int) -> Holdout:
    """Choose up to ten labelled subjects for the probe: two fifths to fit it, the others to judge it.

    At least half of all subjects stay for pretraining. Nothing is held out if fewer than four subjects could be.
    """
    records = list(records)
    first: dict[str, Labelled] = {}
    for record in records:
        labels = find_labels(record.path)
        if labels is not None:
            first.setdefault(record.subject_id, Labelled(record, labels))
    count = min(_MOST, len(first), len({record.subject_id for record in records}) // 2)
    if count < _FEWEST:
        return Holdout()
    drawn = generator_of(seed, "holdout").permutation(sorted(first))[:count].tolist()
    # Evenly out of the modalities in turn, so that those judged have also been seen by the fit.
    order = sorted(drawn, key=lambda name: first[name].record.modality)
    fitted = {order[round(k)] for k in np.linspace(0, count - 1, round(_TRAIN_SHARE * count))}
    train = tuple(first[name] for name in sorted(fitted))
    return Holdout(train, tuple(first[name] for name in sorted(set(order) - fitted)))


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
    """Read labelled images, prepared as the store's images are; a sentence stands for one that cannot be used."""
    for each in chosen:
        # Not the whole id: it has the folder's name in it, and the name seeds which voxels are taken.
        name = "__".join((each.record.subject, each.record.session, each.record.name))
        try:
            yield read_prepared(name, each.record.path, each.labels, settings)
        except RefusedImageError as refusal:
            yield f"{each.record.path} is left out of the probe: {refusal}"


def _with_suffixes(name: Path) -> Iterator[Path]:
    for suffix in SUFFIXES:
        yield name.with_name(name.name + suffix)
