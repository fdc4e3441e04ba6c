"""Labelled images, however they are named: by two folders, a dataset of nnU-Net or a table."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.data.catalogue import write_catalogue
from viewalign.data.file_types import suffix_of
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_catalogue
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings
from viewalign.data.store import Store
from viewalign.errors import ExcludedImageError, UserError
from viewalign.evaluation.voxel_probe import Case, read_prepared
from viewalign.finetuning.segmentation import dataset as datasets
from viewalign.finetuning.segmentation.splits import few_shot
from viewalign.studies.settings import DataSettings, LabelledSettings, SourceSettings, digest_of
from viewalign.tasks.cases import Arrays, kept, stamps
from viewalign.utils.locks import locked


@dataclass(frozen=True)
class LabelledCase:
    """An image, its label map and its name."""

    name: str
    image: Path
    labels: Path

    @property
    def identity(self) -> list[str | int]:
        """What tells that the files are the same, without reading them."""
        return [self.name, self.image.stat().st_size, self.labels.stat().st_size]


@dataclass(frozen=True)
class Labelled:
    """Cases to learn from and others to test on."""

    learn: tuple[LabelledCase, ...]
    test: tuple[LabelledCase, ...]
    classes: dict[str, int]

    @property
    def all(self) -> tuple[LabelledCase, ...]:
        """Return all cases, those to learn from first."""
        return (*self.learn, *self.test)

    def shots(self, count: int | None, draw: str, seed: int) -> tuple[LabelledCase, ...]:
        """Choose cases to learn from: all, `spread` evenly over their names, or drawn for a `seed`.

        Raises:
            UserError: there are not so many.
        """
        if count is None:
            return self.learn
        if count > len(self.learn):
            raise UserError(f"{count} shots are asked for, but data.labelled.learn names {len(self.learn)} cases.")
        if draw == "spread":
            where = np.linspace(0, len(self.learn) - 1, count).round().astype(int)
            return tuple(self.learn[k] for k in where)
        chosen = set(few_shot([case.name for case in self.learn], [], count, seed).train)
        return tuple(case for case in self.learn if case.name in chosen)


def read_labelled(asked: LabelledSettings, root: Path) -> Labelled:
    """Find the labelled cases of a study and who learns.

    Raises:
        UserError: files or cases that are not there, or a case that learns and tests.
    """
    found, split, classes = _find(asked, root)
    named = {side: tuple(case for case in found if split.get(case.name) == side) for side in ("learn", "test")}
    learn = matching(found, asked.learn, "data.labelled.learn") if asked.learn else named["learn"]
    test = matching(found, asked.test, "data.labelled.test") if asked.test else named["test"]
    both = sorted({case.name for case in learn} & {case.name for case in test})
    if both:
        raise UserError(f"data.labelled: learn and test must name different cases, not both {', '.join(both[:3])}.")
    if not learn or not test:
        raise UserError("data.labelled: say with `learn` and `test` (or a manifest's column `split`) who learns.")
    return Labelled(learn, test, dict(asked.classes) or classes)


def _find(asked: LabelledSettings, root: Path) -> tuple[list[LabelledCase], dict[str, str], dict[str, int]]:
    """Return cases, sides by name, and classes, as far as they are told."""
    if asked.dataset is not None:
        cases, classes = in_dataset(root / asked.dataset)
        return cases, {}, classes
    if asked.manifest is not None:
        return *in_table(root / asked.manifest), {}
    return in_folders(first_there(root, asked.images or ""), first_there(root, asked.labels or "")), {}, {}


def in_dataset(folder: Path) -> tuple[list[LabelledCase], dict[str, int]]:
    """Read a dataset in nnU-Net's raw layout, of one channel.

    Raises:
        UserError: it is none, has several channels, or regions in place of classes.
    """
    found = datasets.find(str(folder), folder.parent)
    if found.channels != 1:
        raise UserError(f"{folder} has {found.channels} channels; a study judges on images of one.")
    regions = [name for name, values in found.labels.items() if len(values) > 1]
    if regions:
        raise UserError(f"{folder} has the region '{regions[0]}'; a study judges on classes.")
    cases = [LabelledCase(case.name, case.images[0], case.labels) for case in found.cases]
    return cases, {name: value for name, (value,) in found.labels.items()}


def first_there(root: Path, written: str) -> Path:
    """Return the first of `a|b` that exists below `root`.

    Raises:
        UserError: none does.
    """
    paths = [root / word for word in written.split("|")]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise UserError(f"There is no {' and no '.join(map(str, paths))}. Name their folder behind the study.")
    return found


def in_folders(images: Path, labels: Path) -> list[LabelledCase]:
    """Pair files of two folders by name; an image without labels is left out."""
    by_stem = {_stem(path): path for path in sorted(labels.iterdir()) if suffix_of(path.name)}
    cases = []
    for path in sorted(images.iterdir()):
        stem = _stem(path) if suffix_of(path.name) else ""
        name = stem if stem in by_stem else stem.removesuffix("_0000")
        if name in by_stem:
            cases.append(LabelledCase(name, path, by_stem[name]))
    if not cases:
        raise UserError(f"No image in {images} has a label map of its name in {labels}.")
    return cases


def in_table(table: Path) -> tuple[list[LabelledCase], dict[str, str]]:
    """Read a CSV of case, image, labels and perhaps split.

    Raises:
        UserError: no table, missing columns or files.
    """
    if not table.is_file():
        raise UserError(f"There is no table {table}. Name their folder behind the study.")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lacking = [name for name in ("case", "image", "labels") if not rows or not rows[0].get(name)]
    if lacking:
        raise UserError(f"{table} needs rows with the columns case, image and labels; it lacks {', '.join(lacking)}.")
    cases = [LabelledCase(row["case"], table.parent / row["image"], table.parent / row["labels"]) for row in rows]
    gone = [path for case in cases for path in (case.image, case.labels) if not path.is_file()]
    if gone:
        raise UserError(f"{table} names {gone[0]}, which is not there ({len(gone)} files are missing).")
    return cases, {row["case"]: (row.get("split") or "").strip() for row in rows}


def matching(cases: Sequence[LabelledCase], patterns: Iterable[str], key: str) -> tuple[LabelledCase, ...]:
    """Return cases whose names fit any pattern.

    Raises:
        UserError: a pattern that fits none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {case.name for case in cases if fnmatchcase(case.name, pattern)}
        if not found:
            raise UserError(f"{key}: no case is called {pattern}; there are {', '.join(c.name for c in cases[:4])} …")
        chosen |= found
    return tuple(case for case in cases if case.name in chosen)


def read_case(case: LabelledCase, settings: PrepareSettings, folder: Path) -> Case:
    """Read a case, prepared as the images of pretraining were; once for all arms and seeds, which find it in a folder.

    Raises:
        UserError: it cannot be used.
    """

    def prepare() -> Arrays:
        made = read_prepared(case.name, case.image, case.labels, settings)
        return {"image": made.image, "labels": made.labels}

    try:
        files = stamps((case.image, case.labels))
        name = digest_of([files, settings.fingerprint()])
        return Case(case.name, **(prepare() if files is None else kept(folder / name, prepare)))
    except ExcludedImageError as exclusion:
        raise UserError(f"{case.image} cannot be used: {exclusion}") from None


def classes_in(cases: Sequence[LabelledCase]) -> dict[str, int]:
    """Return `class N` for every label value N that any case has, background left out."""
    values: set[int] = set()
    for case in cases:
        values |= {int(one) for one in np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(case.labels))))}
    return {f"class {value}": value for value in sorted(values - {0})}


def write_dataset(folder: Path, cases: Sequence[LabelledCase], classes: dict[str, int], channel: str = "image") -> Path:
    """Lay labelled cases out as nnU-Net wants them, by links; returns `folder`.

    Raises:
        UserError: files of several kinds.
    """
    ending = suffix_of(cases[0].image.name)
    odd = [c.name for c in cases if suffix_of(c.image.name) != ending or suffix_of(c.labels.name) != ending]
    if odd:
        raise UserError(f"nnU-Net needs files of one kind; {odd[0]} does not end in {ending}.")
    for case in cases:
        for part, name, path in (("imagesTr", f"{case.name}_0000", case.image), ("labelsTr", case.name, case.labels)):
            link = folder / part / f"{name}{ending}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(link):
                link.symlink_to(path.absolute())
    told = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, **(classes or classes_in(cases))},
        "numTraining": len(cases),
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(told, indent=1))
    return folder


def _stem(path: Path) -> str:
    return path.name.removesuffix(suffix_of(path.name) or "")


def will_be_prepared(data: DataSettings, root: Path) -> Mapping[str, Any]:
    """Return how the images are prepared, or will be."""
    if data.source is None:
        return Store.open(root / (data.store or "")).recipe
    return PrepareSettings.model_validate(data.source.prepare).model_dump(mode="json")


def prepared_store(data: DataSettings, root: Path, out: Path) -> Path:
    """Return the store, after preparing what is missing of it; other processes of the study wait for that."""
    if data.source is None:
        return root / (data.store or "")
    source = data.source
    folder = first_there(root, source.folder)
    files = [[path.name, path.stat().st_size] for pattern in source.only or ["*"] for path in folder.glob(pattern)]
    place = out / "data" / digest_of([source.prepare, sorted(files)])
    if not (place / "store" / "index.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / ".lock", math.inf):
            if not (place / "store" / "index.json").is_file():
                _prepare(source, folder, place)
    return place / "store"


def _prepare(source: SourceSettings, folder: Path, place: Path) -> None:
    index = index_sources([str(folder / pattern) for pattern in source.only] or [str(folder)])
    write_catalogue(index.collection, place / "catalogue.json")
    prepare_catalogue(place / "catalogue.json", place / "store", PrepareSettings.model_validate(source.prepare))
