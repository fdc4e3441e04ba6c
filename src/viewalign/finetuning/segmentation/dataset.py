"""A labelled dataset in nnU-Net's raw layout: found, checked before hours are spent, and made visible to nnU-Net."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError

_NAME = re.compile(r"Dataset(\d{3})_\w+")
_ID_OF_FOLDERS = 900
"""Ids from here on are given to folders that have none."""
_NAMED = 4


@dataclass(frozen=True)
class Case:
    """A labelled case: its name, its images in the order of channels, and its labels."""

    name: str
    images: tuple[Path, ...]
    labels: Path


@dataclass(frozen=True)
class Dataset:
    """A dataset of nnU-Net.

    Attributes:
        root: its folder, with `dataset.json`.
        name: `DatasetXXX_NAME`.
        description: what `dataset.json` holds.
        cases: the training cases, sorted by name.
    """

    root: Path
    name: str
    description: dict[str, Any]
    cases: tuple[Case, ...]

    @property
    def id(self) -> int:
        """Its number."""
        found = _NAME.fullmatch(self.name)
        assert found is not None, "names are checked when a dataset is found"
        return int(found[1])

    @property
    def channels(self) -> int:
        """How many images a case has."""
        return len(self.description.get("channel_names") or self.description["modality"])

    @property
    def ending(self) -> str:
        """What its files' names end with."""
        return str(self.description["file_ending"])

    @property
    def labels(self) -> dict[str, tuple[int, ...]]:
        """The values of each class or region by name, background and ignore label left out."""
        return label_values(self.description)

    @property
    def ignore(self) -> int | None:
        """The value of voxels that nobody labelled."""
        value = self.description["labels"].get("ignore")
        return None if value is None else int(value)


def label_values(description: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the values of each foreground class or region that a `dataset.json` names."""
    values: dict[str, tuple[int, ...]] = {}
    for name, value in description["labels"].items():
        members = tuple(int(one) for one in value) if isinstance(value, list | tuple) else (int(value),)
        if name != "ignore" and members != (0,):
            values[name] = members
    return values


def find(asked: str, raw: Path) -> Dataset:
    """Find a dataset by number, name or folder, and read what it says of itself.

    Args:
        asked: `42`, `Dataset042_Liver`, or a folder in nnU-Net's raw layout.
        raw: nnU-Net's folder of raw datasets.

    Raises:
        UserError: it is not there, or its description or files are incomplete.
    """
    root = _root_of(asked, raw)
    description = _description(root)
    name = root.name if _NAME.fullmatch(root.name) else _name_for(root, raw)
    return Dataset(root, name, description, tuple(_cases(root, description)))


def _root_of(asked: str, raw: Path) -> Path:
    folder = Path(asked)
    if (folder / "dataset.json").is_file():
        return folder.absolute()
    if asked.isdigit():
        found = sorted(path for path in raw.glob(f"Dataset{int(asked):03d}_*") if path.is_dir())
    else:
        found = [raw / asked] if (raw / asked / "dataset.json").is_file() else []
    if len(found) > 1:
        raise UserError(f"Dataset {asked} is ambiguous in {raw}: {', '.join(path.name for path in found)}.")
    if found:
        return found[0]
    if folder.is_dir():
        raise UserError(f"{folder} holds no dataset.json. nnU-Net's layout is dataset.json, imagesTr/ and labelsTr/.")
    raise UserError(f"There is no dataset {asked}: no such folder, and nothing of that name in {raw} (nnUNet_raw).")


def _description(root: Path) -> dict[str, Any]:
    file = root / "dataset.json"
    try:
        tree = json.loads(file.read_text())
    except OSError as problem:
        raise UserError(f"{file} cannot be read: {problem.strerror}.") from None
    except ValueError as problem:
        raise UserError(f"{file} is no JSON: {problem}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds no description of a dataset.")
    missing = [key for key in ("labels", "file_ending") if key not in tree]
    missing += [] if "channel_names" in tree or "modality" in tree else ["channel_names"]
    if missing:
        raise UserError(f"{file} has no {' and no '.join(missing)}.")
    if not isinstance(tree["labels"], dict) or not label_values(tree):
        raise UserError(f'{file} names no class but background; "labels" is like {{"background": 0, "tumour": 1}}.')
    return tree


def _name_for(root: Path, raw: Path) -> str:
    """Return a name for a folder that has none: the one it was given before, or the next free."""
    word = re.sub(r"\W+", "", root.name.title()) or "Data"
    taken = {path.name for path in raw.iterdir()} if raw.is_dir() else set()
    for name in sorted(taken):
        if _NAME.fullmatch(name) and (raw / name).resolve() == root.resolve():
            return name
    used = {int(found[1]) for name in taken if (found := _NAME.fullmatch(name))}
    free = next(number for number in range(_ID_OF_FOLDERS, 1000) if number not in used)
    return f"Dataset{free}_{word}"


def _cases(root: Path, description: dict[str, Any]) -> Iterable[Case]:
    """Yield the training cases; every image must have all its channels and labels."""
    ending = str(description["file_ending"])
    count = len(description.get("channel_names") or description["modality"])
    names = _case_names(root, ending)
    missing: list[Path] = []
    for name in names:
        images = tuple(root / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(count))
        labels = root / "labelsTr" / f"{name}{ending}"
        missing += [file for file in (*images, labels) if not file.is_file()]
        yield Case(name, images, labels)
    if missing:
        shown = ", ".join(str(file.relative_to(root)) for file in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise UserError(f"{root.name} lacks {shown}{more}: each case needs {count} image(s) and its labels.")


def _case_names(root: Path, ending: str) -> list[str]:
    folder = root / "imagesTr"
    if not folder.is_dir():
        raise UserError(f"{root} has no folder imagesTr.")
    if not (root / "labelsTr").is_dir() or not any((root / "labelsTr").iterdir()):
        raise UserError(f"{root} has no labels: the folder labelsTr is missing or empty, and nothing can be learnt.")
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    names = {found[1] for path in folder.iterdir() if (found := pattern.fullmatch(path.name))}
    if not names:
        raise UserError(f"{folder} holds no images named CASE_0000{ending} (dataset.json says file_ending={ending}).")
    return sorted(names)


def check(dataset: Dataset, on_case: Callable[[int, int], None] | None = None) -> None:
    """Read all labels and the headers of all images; tell everything that is wrong at once.

    Raises:
        UserError: labels that `dataset.json` does not list, or images and labels of different grids.
    """
    allowed = {0} | {value for values in dataset.labels.values() for value in values}
    allowed |= set() if dataset.ignore is None else {dataset.ignore}
    problems: list[str] = []
    for number, case in enumerate(dataset.cases, start=1):
        problems += _faults(case, allowed)
        if on_case:
            on_case(number, len(dataset.cases))
    if problems:
        more = f" And {len(problems) - _NAMED} more." if len(problems) > _NAMED else ""
        raise UserError(f"{dataset.name} cannot be used: " + " ".join(problems[:_NAMED]) + more)


def _faults(case: Case, allowed: set[int]) -> list[str]:
    try:
        labels = sitk.ReadImage(str(case.labels))
        headers = [_header(path) for path in case.images]
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1]
        return [f"{case.name} cannot be read ({reason})."]
    faults = []
    for path, header in zip(case.images, headers, strict=True):
        if header.GetSize() != labels.GetSize():
            sizes = " and ".join("×".join(map(str, size[::-1])) for size in (header.GetSize(), labels.GetSize()))
            faults.append(f"{path.name} and its labels have different sizes ({sizes}).")
        elif not np.allclose(header.GetSpacing(), labels.GetSpacing(), atol=1e-3):
            faults.append(f"{path.name} and its labels have different voxel sizes.")
    values: NDArray[Any] = np.unique(sitk.GetArrayViewFromImage(labels))
    strangers = [f"{value:g}" for value in values.tolist() if value not in allowed]
    if strangers:
        faults.append(f"{case.labels.name} has labels that dataset.json does not list: {', '.join(strangers)}.")
    return faults


def _header(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def link(dataset: Dataset, raw: Path) -> None:
    """Make a dataset visible in nnU-Net's folder of raw data; nothing is copied.

    Raises:
        UserError: something else lies there under that name, or links cannot be made.
    """
    target = raw / dataset.name
    try:
        if not target.exists():
            target.symlink_to(dataset.root, target_is_directory=True)
    except FileExistsError:
        pass  # another fold that starts now has linked it
    except OSError as problem:
        raise UserError(f"{dataset.root} cannot be linked as {target}: {problem.strerror}.") from None
    if target.resolve() != dataset.root.resolve():
        raise UserError(f"{target} is another dataset than {dataset.root}; rename one of them.")


def names_matching(cases: Sequence[str], asked: str) -> list[str]:
    """Return the cases that a file of names or comma-separated patterns such as `liver_2*,liver_30` ask for.

    Raises:
        UserError: a name or pattern without a case.
    """
    from fnmatch import fnmatchcase

    file = Path(asked)
    words = file.read_text().split() if file.is_file() else [word.strip() for word in asked.split(",") if word.strip()]
    chosen: set[str] = set()
    for word in words:
        found = [word] if word in cases else [name for name in cases if fnmatchcase(name, word)]
        if not found:
            raise UserError(f"No case is called {word}; there are {', '.join(cases[:_NAMED])} and so on.")
        chosen.update(found)
    return sorted(chosen)
