"""The data of a study: labelled images from folders, a dataset of nnU-Net or a table, and the pretraining store."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.data.catalogue import write_catalogue
from viewalign.data.file_types import suffix_of
from viewalign.data.fingerprint import content_digest, file_digest
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_catalogue
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings
from viewalign.data.sources.table import read_table
from viewalign.data.store import Store
from viewalign.errors import ExcludedImageError, UserError, os_reason
from viewalign.evaluation.segmentation_metrics import read_labels
from viewalign.evaluation.voxel_probe import Case, read_prepared
from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation.splits import few_shot, patients_of
from viewalign.studies.settings import DataSettings, LabelledSettings, SourceSettings, digest_of
from viewalign.tasks.cases import Arrays, cached_arrays, file_stamps
from viewalign.tasks.copies import copies_among, read_fingerprints, report_divided
from viewalign.utils.io import write_json
from viewalign.utils.locks import locked
from viewalign.utils.settings import checked
from viewalign.utils.text import counted
from viewalign.weights.files import sha256_of


@dataclass(frozen=True)
class LabelledCase:
    """An image with its label map."""

    name: str
    image: Path
    labels: Path

    @property
    def identity(self) -> list[str | int]:
        """Plain values that change with the case: of the label map, which people edit, every byte counts."""
        labels = [content_digest(self.labels), _file_digest(self.labels, *_state(self.labels))]
        return [self.name, content_digest(self.image), *labels]


@dataclass(frozen=True)
class Labelled:
    """Training and test cases with the names of label values, and the pattern of patients in names of cases."""

    learn: tuple[LabelledCase, ...]
    test: tuple[LabelledCase, ...]
    classes: dict[str, int]
    patient: str | None = None

    @property
    def patients(self) -> dict[str, str]:
        """The patient of each case: what its pattern finds in the name, or the case itself."""
        return patients_of([case.name for case in self.all], self.patient)

    @property
    def all(self) -> tuple[LabelledCase, ...]:
        """All cases, training cases first."""
        return (*self.learn, *self.test)

    def shots(self, count: int | None, draw: str, seed: int) -> tuple[LabelledCase, ...]:
        """Return training cases: all, or those of patients `spread` evenly over their order, or sampled for a `seed`.

        Raises:
            UserError: there are fewer patients.
        """
        if count is None:
            return self.learn
        patients = patients_of([case.name for case in self.learn], self.patient)
        names = list(dict.fromkeys(patients.values()))
        if count > len(names):
            few = counted(len(names), "case" if self.patient is None else "patient")
            raise UserError(f"shots={count}: data.labelled.learn names only {few}.")
        if draw == "spread":
            chosen = {names[k] for k in np.linspace(0, len(names) - 1, count).round().astype(int)}
        else:
            chosen = {patients[name] for name in few_shot(patients, [], count, seed).train}
        return tuple(case for case in self.learn if patients[case.name] in chosen)


def read_labelled(settings: LabelledSettings, root: Path) -> Labelled:
    """Find the labelled cases of a study and split them into training and test cases.

    Raises:
        UserError: missing files or cases, or a case or patient that is in both parts.
    """
    cases, split, classes = _find(settings, root)
    unknown = sorted(set(split.values()) - {"", "learn", "test"})
    if unknown and not (settings.learn and settings.test):
        raise UserError(f"{settings.manifest}, column split: '{unknown[0]}' is neither learn, test nor empty.")
    parts: dict[str, tuple[LabelledCase, ...]] = {}
    for part, patterns in (("learn", settings.learn), ("test", settings.test)):
        from_table = tuple(case for case in cases if split.get(case.name) == part)
        parts[part] = matching(cases, patterns, f"data.labelled.{part}") if patterns else from_table
        if not parts[part]:
            raise UserError(f"data.labelled: select cases by `{part}`, or by a manifest's column `split`.")
    found = Labelled(parts["learn"], parts["test"], dict(settings.classes) or classes, settings.patient)
    sides = [{found.patients[case.name] for case in part} for part in (found.learn, found.test)]
    if both := sorted(sides[0] & sides[1]):
        what = "cases" if settings.patient is None else "patients"
        raise UserError(f"data.labelled: learn and test must name different {what}, not both {', '.join(both[:3])}.")
    return found


def report_copies(labelled: Labelled, cache: Path) -> None:
    """Log a warning if training and test cases contain copies of one image.

    Args:
        labelled: the cases.
        cache: file in which fingerprints of the images are kept.
    """
    images = {case.name: case.image for case in labelled.all}
    copies = copies_among({name: name for name in images}, read_fingerprints(images, cache))
    report_divided(copies, [case.name for case in labelled.learn], [case.name for case in labelled.test], "test")


def _find(settings: LabelledSettings, root: Path) -> tuple[list[LabelledCase], dict[str, str], dict[str, int]]:
    """Return cases, their parts by name, and classes, if known."""
    if settings.dataset is not None:
        cases, classes = in_dataset(root / settings.dataset)
        return cases, {}, classes
    if settings.manifest is not None:
        return *in_table(root / settings.manifest), {}
    images, labels = (first_existing(root, folder or "") for folder in (settings.images, settings.labels))
    return in_folders(images, labels), {}, {}


def in_dataset(folder: Path) -> tuple[list[LabelledCase], dict[str, int]]:
    """Read a dataset in nnU-Net's raw layout, of one channel.

    Raises:
        UserError: no such dataset, or one with several channels or with regions.
    """
    dataset = datasets.find(str(folder), folder.parent)
    if dataset.channels != 1:
        raise UserError(f"{folder} has {counted(dataset.channels, 'channel')}; studies support one.")
    regions = [name for name, values in dataset.labels.items() if len(values) > 1]
    if regions:
        raise UserError(f"{folder} has the region '{regions[0]}'; studies support classes only.")
    if dataset.ignore is not None:
        raise UserError(f"{folder} has an ignore label; studies do not support it.")
    cases = [LabelledCase(case.name, case.images[0], case.labels) for case in dataset.cases]
    return cases, {name: value for name, (value,) in dataset.labels.items()}


def first_existing(root: Path, written: str) -> Path:
    """Return the first of `a|b` that exists in `root`.

    Raises:
        UserError: none exists.
    """
    paths = [root / word for word in written.split("|")]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise UserError(f"There is no {' or '.join(map(str, paths))}. Name the folder of the study's data.")
    return found


def in_folders(images: Path, labels: Path) -> list[LabelledCase]:
    """Pair the files of two folders by name, ignoring images without labels.

    Raises:
        UserError: no pair, or images of several channels.
    """
    by_stem = {_stem(path): path for path in sorted(labels.iterdir()) if suffix_of(path.name)}
    cases = []
    for path in sorted(images.iterdir()):
        stem = _stem(path) if suffix_of(path.name) else ""
        name = stem if stem in by_stem else stem.removesuffix("_0000")
        channel = re.fullmatch(r"(.+)_(?!0000)\d{4}", name)
        if channel and name not in by_stem and channel[1] in by_stem:
            raise UserError(f"{images} has several channels of {channel[1]}, such as {path.name}; studies support one.")
        if name in by_stem:
            cases.append(LabelledCase(name, path, by_stem[name]))
    if not cases:
        raise UserError(f"No image in {images} has a label map of its name in {labels}.")
    return cases


def in_table(table: Path) -> tuple[list[LabelledCase], dict[str, str]]:
    """Read a CSV file with columns case, image, labels and optionally split.

    Raises:
        UserError: no file, or missing columns or images.
    """
    if not table.is_file():
        raise UserError(f"There is no table {table}. Name the folder of the study's data.")
    columns, rows = read_table(table, missing=("",))
    missing = [name for name in ("case", "image", "labels") if name not in columns]
    if missing:
        raise UserError(f"{table} needs rows with the columns case, image and labels; missing: {', '.join(missing)}.")
    for number, row in enumerate(rows, 1):
        if lacks := [name for name in ("case", "image", "labels") if name not in row]:
            raise UserError(f"{table}, row {number} ({row.get('case', 'unnamed')}): {' and '.join(lacks)} is empty.")
    repeated = [name for name, count in Counter(row["case"] for row in rows).items() if count > 1]
    if repeated:
        raise UserError(f"{table} has several rows of the case {repeated[0]}; give each a name of its own.")
    cases = [LabelledCase(row["case"], table.parent / row["image"], table.parent / row["labels"]) for row in rows]
    absent = [path for case in cases for path in (case.image, case.labels) if not path.is_file()]
    if absent:
        lacking = counted(len(absent), "file")
        raise UserError(f"{table} names {absent[0]}, which does not exist ({lacking} missing).")
    return cases, {row["case"]: (row.get("split") or "").strip().lower() for row in rows}


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _file_digest(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 - a changed file is read again
    return sha256_of(path)


def matching(cases: Sequence[LabelledCase], patterns: Iterable[str], key: str) -> tuple[LabelledCase, ...]:
    """Return cases whose names match any pattern.

    Raises:
        UserError: a pattern that matches no case.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {case.name for case in cases if fnmatchcase(case.name, pattern)}
        if not found:
            raise UserError(f"{key}: no case matches {pattern}; cases are {', '.join(c.name for c in cases[:4])} …")
        chosen |= found
    return tuple(case for case in cases if case.name in chosen)


_VERSION = 2
"""Of prepared cases; labels above 255 were 255 in the first."""


def read_case(case: LabelledCase, settings: PrepareSettings, folder: Path) -> Case:
    """Read a case, prepared as in pretraining and cached in a folder.

    Raises:
        UserError: it cannot be used.
    """

    def prepare() -> Arrays:
        prepared = read_prepared(case.name, case.image, case.labels, settings)
        return {"image": prepared.image, "labels": prepared.labels}

    try:
        files = file_stamps((case.image, case.labels))
        name = digest_of([files, settings.fingerprint(), _VERSION])
        return Case(case.name, **(prepare() if files is None else cached_arrays(folder / name, prepare)))
    except ExcludedImageError as exclusion:
        raise UserError(f"{case.image} cannot be used: {exclusion}") from None


def classes_in(cases: Sequence[LabelledCase]) -> dict[str, int]:
    """Return `class N` for every label value N of the cases, without background.

    Raises:
        UserError: labels that cannot be read.
    """
    values: set[int] = set()
    for case in cases:
        values |= {int(value) for value in np.unique(sitk.GetArrayFromImage(read_labels(case.labels)))}
    return {f"class {value}": value for value in sorted(values - {0})}


def write_dataset(folder: Path, cases: Sequence[LabelledCase], classes: dict[str, int], channel: str = "image") -> Path:
    """Write labelled cases in nnU-Net's raw layout, by links; return `folder`.

    Raises:
        UserError: files with different extensions.
    """
    ending = suffix_of(cases[0].image.name)
    odd = [c.name for c in cases if suffix_of(c.image.name) != ending or suffix_of(c.labels.name) != ending]
    if odd:
        raise UserError(f"nnU-Net needs files with one extension; {odd[0]} does not end in {ending}.")
    for case in cases:
        for part, name, path in (("imagesTr", f"{case.name}_0000", case.image), ("labelsTr", case.name, case.labels)):
            link = folder / part / f"{name}{ending}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(link):
                link.symlink_to(path.absolute())
    description = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, **(classes or classes_in(cases))},
        "numTraining": len(cases),
        "file_ending": ending,
    }
    write_json(folder / "dataset.json", description)
    return folder


def _stem(path: Path) -> str:
    return path.name.removesuffix(suffix_of(path.name) or "")


def planned_preparation(data: DataSettings, root: Path) -> Mapping[str, Any]:
    """Return the preprocessing settings of the store, which may not exist yet."""
    if data.source is None:
        return Store.open(root / (data.store or "")).recipe
    return _preparation(data.source).model_dump(mode="json")


def _preparation(source: SourceSettings) -> PrepareSettings:
    return checked(PrepareSettings, source.prepare, "data.source.prepare")


def prepared_store(data: DataSettings, root: Path, out: Path, prepare: bool = True) -> Path:
    """Return the pretraining store; with `prepare` it is prepared if it is missing, and other processes wait.

    Raises:
        UserError: `data.source` names no file, or a file that cannot be read.
    """
    if data.source is None:
        return root / (data.store or "")
    source = data.source
    folder = first_existing(root, source.folder)
    files: set[Path] = set()
    for pattern in source.only or ["*"]:
        found = [inner for path in folder.glob(pattern) for inner in (path.rglob("*") if path.is_dir() else [path])]
        if not found:
            raise UserError(f"data.source: there is no file {folder / pattern}; name others by `folder` or `only`.")
        files |= {path for path in found if path.is_file()}
    try:
        named = [[str(path.relative_to(folder)), file_digest(path).hex()] for path in sorted(files)]
    except OSError as problem:
        raise UserError(f"data.source: {problem.filename} cannot be read: {os_reason(problem)}.") from None
    place = out / "data" / digest_of([_preparation(source).fingerprint(), named])
    if prepare and not (place / "store" / "index.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / ".lock", math.inf):
            if not (place / "store" / "index.json").is_file():
                _prepare(source, folder, place)
    return place / "store"


def _prepare(source: SourceSettings, folder: Path, place: Path) -> None:
    index = index_sources([str(folder / pattern) for pattern in source.only] or [str(folder)])
    write_catalogue(index.collection, place / "catalogue.json")
    prepare_catalogue(place / "catalogue.json", place / "store", _preparation(source))
