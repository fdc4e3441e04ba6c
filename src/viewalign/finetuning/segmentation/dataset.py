"""Find and check a labelled dataset in nnU-Net's raw layout, and link it into nnU-Net's folder."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from viewalign.data.readers.itk import sitk
from viewalign.data.sources.table import decoded
from viewalign.errors import UserError, os_reason
from viewalign.evaluation.folders import label_values
from viewalign.utils.io import is_file
from viewalign.utils.overrides import similar
from viewalign.utils.text import counted

_NAME = re.compile(r"Dataset(\d{3})_\w+")
_FIRST_FREE_ID = 900
"""First id for datasets in folders without one."""
_MAX_REPORTED = 4
_NIBABEL = "NibabelIOWithReorient"
_LARGEST_OFFSET = 0.05
"""Distance in mm of labels from their image that is not reported."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A labelled case, with images in the order of channels."""

    name: str
    images: tuple[Path, ...]
    labels: Path


@dataclass(frozen=True)
class Dataset:
    """A dataset of nnU-Net.

    Attributes:
        root: its folder, with `dataset.json`.
        name: `DatasetXXX_NAME`.
        description: contents of `dataset.json`.
        cases: training cases, sorted by name.
    """

    root: Path
    name: str
    description: dict[str, Any]
    cases: tuple[Case, ...]

    @property
    def id(self) -> int:
        """The number in its name."""
        found = _NAME.fullmatch(self.name)
        assert found is not None, "names are checked when a dataset is found"
        return int(found[1])

    @property
    def channels(self) -> int:
        """Number of images per case."""
        return len(self.description.get("channel_names") or self.description["modality"])

    @property
    def images(self) -> Path:
        """Folder of the training images; the first one, if `dataset.json` lists images of several."""
        return self.cases[0].images[0].parent

    @property
    def ending(self) -> str:
        """File name extension of its images."""
        return str(self.description["file_ending"])

    @property
    def labels(self) -> dict[str, tuple[int, ...]]:
        """Values of each class or region by name, without background and ignore label."""
        return label_values(self.description)

    @property
    def ignore(self) -> int | None:
        """Value of unlabelled voxels."""
        value = self.description["labels"].get("ignore")
        return None if value is None else int(value)


def find(requested: str, raw: Path, *others: Path) -> Dataset:
    """Find a dataset by number, name or folder, and read its description.

    Args:
        requested: `42`, `Dataset042_Heart`, or a folder in nnU-Net's raw layout.
        raw: nnU-Net's folder of raw datasets.
        others: its folders of preprocessed datasets and of results, whose numbers are not given to another dataset.

    Raises:
        UserError: no such dataset, or its description or files are incomplete.
    """
    root = _root_of(requested, raw)
    description = _description(root)
    name = root.name if _NAME.fullmatch(root.name) else _name_for(root, raw, *others)
    return Dataset(root, name, description, tuple(_cases(root, description)))


def _root_of(requested: str, raw: Path) -> Path:
    folder = Path(requested)
    if (folder / "dataset.json").is_file():
        return folder.absolute()
    if requested.isdecimal():
        found = sorted(path for path in raw.glob(f"Dataset{int(requested):03d}_*") if path.is_dir())
    else:
        found = [raw / requested] if (raw / requested / "dataset.json").is_file() else []
    if len(found) > 1:
        raise UserError(f"Dataset {requested} is ambiguous in {raw}: {', '.join(path.name for path in found)}.")
    if found:
        return found[0]
    if folder.is_dir():
        raise UserError(f"{folder} has no dataset.json. nnU-Net's layout is dataset.json, imagesTr/ and labelsTr/.")
    near, where = _nearby(requested), raw.absolute()
    raise UserError(f"There is no dataset {requested}{near}: no such folder, and no such name in {where}.")


def _nearby(requested: str) -> str:
    """Suggest a dataset in the current folder, by its number or a similar name."""
    names = sorted(path.parent.name for path in Path().glob("Dataset*/dataset.json"))
    wanted = f"Dataset{int(requested):03d}_" if requested.isdecimal() else requested
    numbered = [name for name in names if name.startswith(wanted)]
    return similar(wanted, numbered or names, cutoff=0.5 if numbered else 0.8)


def _description(root: Path) -> dict[str, Any]:
    file = root / "dataset.json"
    try:
        tree = json.loads(file.read_text())
    except OSError as problem:
        raise UserError(f"{file} cannot be read: {problem.strerror}.") from None
    except ValueError as problem:
        raise UserError(f"{file} is not valid JSON: {problem}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file} does not describe a dataset.")
    missing = [key for key in ("labels", "file_ending") if key not in tree]
    missing += [] if "channel_names" in tree or "modality" in tree else ["channel_names"]
    if missing:
        raise UserError(f"{file} has no {' and no '.join(missing)}.")
    example = '"labels" must be like {"background": 0, "tumour": 1}'
    try:
        classes = label_values(tree)
    except (ValueError, TypeError, AttributeError):  # names by value, as in the first nnU-Net
        raise UserError(f"{file} has labels of another form; {example}.") from None
    if not classes:
        raise UserError(f"{file} has no class but background; {example}.")
    return tree


def _name_for(root: Path, raw: Path, *others: Path) -> str:
    """Return a name for a folder without id: its previous one, or the next one that is free in all folders."""
    word = re.sub(r"\W+", "", root.name.title()) or "Data"
    linked, *further = ({path.name for path in folder.glob("Dataset*")} for folder in (raw, *others))
    for name in sorted(linked):
        if _NAME.fullmatch(name) and (raw / name).resolve() == root.resolve():
            return name
    used = {name[:10] for name in linked.union(*further)}
    free = next(number for number in range(_FIRST_FREE_ID, 1000) if f"Dataset{number}" not in used)
    return f"Dataset{free}_{word}"


def _cases(root: Path, description: dict[str, Any]) -> Iterable[Case]:
    """Yield the training cases: those that `dataset.json` lists, as nnU-Net reads it, otherwise those of `imagesTr`.

    Raises:
        UserError: a case lacks a channel or labels.
    """
    ending = str(description["file_ending"])
    count = len(description.get("channel_names") or description["modality"])
    missing: list[Path] = []
    listed = "dataset" in description
    for case in _listed_cases(root, description["dataset"]) if listed else _named_cases(root, ending, count):
        if len(case.images) != count:
            raise UserError(
                f"{case.name} has {counted(len(case.images), 'image')} in {root / 'dataset.json'}, not {count}."
            )
        missing += [file for file in (*case.images, case.labels) if not is_file(file)]
        yield case
    if missing:
        shown = ", ".join(str(file).removeprefix(f"{root}/") for file in missing[:_MAX_REPORTED])
        more = f" and {len(missing) - _MAX_REPORTED} more" if len(missing) > _MAX_REPORTED else ""
        raise UserError(f"{root.name} has no {shown}{more}: each case needs {count} image(s) and labels.")


def _listed_cases(root: Path, listed: Any) -> Iterable[Case]:
    """Yield the cases of nnU-Net's list of files, whose paths may be relative to the dataset and contain variables."""
    try:
        for name in sorted(listed) or [""]:  # no case at all is an error too
            images, labels = listed[name]["images"], listed[name]["label"]
            paths = [root / os.path.expandvars(path) for path in (*images, labels)]
            yield Case(name, tuple(paths[:-1]), paths[-1])
    except (TypeError, KeyError):
        example = '{"case": {"images": ["images/case_0000.nii.gz"], "label": "labels/case.nii.gz"}}'
        raise UserError(f'"dataset" in {root / "dataset.json"} must be like {example}.') from None


def _named_cases(root: Path, ending: str, count: int) -> Iterable[Case]:
    for name in _case_names(root, ending):
        images = tuple(root / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(count))
        yield Case(name, images, root / "labelsTr" / f"{name}{ending}")


def _case_names(root: Path, ending: str) -> list[str]:
    folder = root / "imagesTr"
    if not folder.is_dir():
        raise UserError(f"{root} has no folder imagesTr.")
    if not (root / "labelsTr").is_dir() or not any((root / "labelsTr").iterdir()):
        raise UserError(f"{root} has no labels: the folder labelsTr is missing or empty.")
    pattern = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    names = {found[1] for path in folder.iterdir() if (found := pattern.fullmatch(path.name))}
    if not names:
        raise UserError(f"{folder} has no images named CASE_0000{ending} (file_ending={ending} in dataset.json).")
    return sorted(names)


def check(dataset: Dataset, on_case: Callable[[int, int], None] | None = None) -> None:
    """Check all labels and image headers, read as nnU-Net's reader that `dataset.json` names reads them.

    Labels at other positions than their image are reported, since nnU-Net ignores positions.

    Raises:
        UserError: labels that `dataset.json` does not list, or images and labels of different sizes or voxel sizes.
    """
    allowed = {0} | {value for values in dataset.labels.values() for value in values}
    allowed |= set() if dataset.ignore is None else {dataset.ignore}
    reader = str(dataset.description.get("overwrite_image_reader_writer", ""))
    problems = _other_files(dataset)
    offsets: dict[str, float] = {}
    for number, case in enumerate(dataset.cases, start=1):
        faults, offset = _faults(case, allowed, reader)
        problems += faults
        if offset > _LARGEST_OFFSET:
            offsets[case.name] = offset
        if on_case:
            on_case(number, len(dataset.cases))
    if problems:
        more = f" And {len(problems) - _MAX_REPORTED} more." if len(problems) > _MAX_REPORTED else ""
        raise UserError(f"{dataset.name} cannot be used: " + " ".join(problems[:_MAX_REPORTED]) + more)
    if offsets:
        shown = ", ".join(f"{name} ({offset:.2g} mm)" for name, offset in list(offsets.items())[:_MAX_REPORTED])
        _log.warning(
            "Labels with another position than their image, which nnU-Net ignores, in %s: %s.",
            *(counted(len(offsets), "case"), shown + (", …" if len(offsets) > _MAX_REPORTED else "")),
        )


def _other_files(dataset: Dataset) -> list[str]:
    """Report images that are not listed, which nnU-Net takes for cases, or for channels of a case."""
    if "dataset" in dataset.description:  # where nnU-Net reads which files there are
        return []
    expected = {image.name for case in dataset.cases for image in case.images}
    names = sorted(path.name for path in (dataset.root / "imagesTr").iterdir() if path.name.endswith(dataset.ending))
    count = counted(dataset.channels, "channel")
    return [f"{name} in imagesTr is not an image of a case with {count}." for name in names if name not in expected]


def _faults(case: Case, allowed: set[int], reader: str) -> tuple[list[str], float]:
    """Return what is wrong with a case, and how far in mm its labels are from where the images are."""
    try:
        labels, grid = _read_labels(case.labels, reader)
        grids = [read_grid(path, reader) for path in case.images]
    except (RuntimeError, OSError, ImageFileError, ValueError) as problem:
        reason = str(problem).strip().splitlines()[-1]
        remedy = "" if reader else f"; dataset.json may name {_NIBABEL} (overwrite_image_reader_writer)"
        return [f"{case.name} cannot be read ({reason}){remedy}."], 0.0
    faults = []
    for path, other in zip(case.images, grids, strict=True):
        if other.shape != grid.shape:
            sizes = " and ".join("×".join(map(str, shape)) for shape in (other.shape, grid.shape))
            faults.append(f"{path.name} and its labels have different sizes ({sizes}).")
        elif not np.allclose(other.spacing, grid.spacing, atol=1e-3):
            faults.append(f"{path.name} and its labels have different voxel sizes.")
    values: NDArray[Any] = np.unique(labels)
    unknown = [f"{value:g}" for value in values.tolist() if value not in allowed]
    if unknown:
        faults.append(f"{case.labels.name} has labels that dataset.json does not list: {', '.join(unknown)}.")
    return faults, 0.0 if faults else max(grid.offset(other) for other in grids)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file are.

    Attributes:
        shape: voxels along (D, H, W).
        affine: 4×4 (3×3 in 2D), from an index (x, y, z, 1) to mm.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Voxel size in mm along (x, y, z)."""
        sizes: NDArray[np.float64] = np.linalg.norm(self.affine[:-1, :-1], axis=0)
        return sizes

    def offset(self, other: Grid) -> float:
        """Return the largest distance in mm between corners of two grids of one shape."""
        corners = np.array([*product(*((0, count - 1) for count in self.shape[::-1]))])
        difference = self.affine - other.affine
        return float(np.linalg.norm(corners @ difference[:-1, :-1].T + difference[:-1, -1], axis=1).max())


def read_grid(path: Path, reader: str = "") -> Grid:
    """Read the grid of a file as a reader of nnU-Net does: `NibabelIO…`, otherwise SimpleITK."""
    if reader.startswith("Nibabel"):
        return _nibabel_grid(nib.load(path), reader)
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    return _itk_grid(header)


def _read_labels(path: Path, reader: str) -> tuple[NDArray[Any], Grid]:
    if reader.startswith("Nibabel"):
        image: Any = nib.load(path)
        return np.asanyarray(image.dataobj), _nibabel_grid(image, reader)
    labels = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(labels), _itk_grid(labels)


def _nibabel_grid(image: Any, reader: str) -> Grid:
    shape, affine = np.array(image.shape[:3]), np.array(image.affine)
    if reader.endswith("WithReorient"):
        turn = nib.orientations.io_orientation(affine)
        affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)
        shape = shape[np.argsort(turn[:, 0])]
    return Grid(tuple(int(count) for count in shape[::-1]), affine)


def _itk_grid(image: Any) -> Grid:
    size, spacing = image.GetSize(), np.array(image.GetSpacing())
    affine = np.eye(len(size) + 1)
    affine[:-1, :-1] = np.array(image.GetDirection()).reshape(len(size), -1) * spacing
    affine[:-1, -1] = image.GetOrigin()
    return Grid(tuple(size[::-1]), affine)


def check_number(dataset: Dataset, raw: Path, *others: Path) -> None:
    """Check that no other dataset has this one's number in nnU-Net's folders, which nnU-Net searches by number.

    Args:
        dataset: to check.
        raw: nnU-Net's folder of raw datasets.
        others: its folders of preprocessed datasets and of results.

    Raises:
        UserError: another one has it.
    """
    start = dataset.name[:10]
    same = [path for folder in (raw, *others) for path in sorted(folder.glob(f"{start}*")) if path.is_dir()]
    other = next((path for path in same if path.name != dataset.name), None)
    if other is None:
        return
    target = raw / dataset.name
    left = f" If {target.name} is renamed, remove the link {target} too." if target.is_symlink() else ""
    raise UserError(
        f"{dataset.root} and {other} have the same number {dataset.id:03d}, by which nnU-Net finds datasets. Give one "
        f"of them a number that is free in nnU-Net's folders of raw data, preprocessed data and results.{left}"
    )


def link(dataset: Dataset, raw: Path, *others: Path) -> None:
    """Link a dataset into nnU-Net's folder of raw data. Arguments: see `check_number`.

    Raises:
        UserError: another dataset has its name or number, or the link cannot be created.
    """
    check_number(dataset, raw, *others)
    target = raw / dataset.name
    try:
        if not target.exists():
            target.symlink_to(dataset.root, target_is_directory=True)
    except FileExistsError:
        pass  # created by another process meanwhile
    except OSError as problem:
        raise UserError(f"{dataset.root} cannot be linked as {target}: {problem.strerror}.") from None
    if target.resolve() != dataset.root.resolve():
        raise UserError(f"{target} is another dataset than {dataset.root}; rename one of them.")


def names_matching(cases: Sequence[str], requested: str) -> list[str]:
    """Return the cases that match comma-separated patterns such as `heart_2*,heart_30`, or a file of names.

    A line of the file is one name, or several without spaces in them.

    Raises:
        UserError: a name or pattern that matches no case, or a file that is no text.
    """
    from fnmatch import fnmatchcase

    file = Path(requested)
    # A long list of names is no file name either, for which pathlib raises.
    words = [word.strip() for word in requested.split(",")]
    if is_file(file):
        try:
            lines = [line.strip() for line in decoded(file.read_bytes()).splitlines()]
        except (OSError, UnicodeDecodeError) as problem:
            raise UserError(f"{file} cannot be read: {os_reason(problem)}.") from None
        words = [word for line in lines for word in ([line] if line in cases else line.split())]
    chosen: set[str] = set()
    for word in filter(None, words):
        found = [word] if word in cases else [name for name in cases if fnmatchcase(name, word)]
        if not found:
            raise UserError(f"No case matches {word}; the first cases are {', '.join(cases[:_MAX_REPORTED])}.")
        chosen.update(found)
    return sorted(chosen)
