"""Datasets that nnssl has preprocessed, read where they lie.

```
$nnssl_preprocessed/DatasetXXX_Name/nnsslPlans.json, valid_imgs.json
    <plans>_<configuration>/<collection>/<dataset>/<subject>/<session>/
        <image>.b2nd          voxels (C, Z, Y, X), float32
        <image>__anon.b2nd    anonymisation mask
        <image>__anat.b2nd    anatomy mask
        <image>.pkl           never opened: unpickling runs code
```

- A voxel is inside a mask where that is above 0. nnssl's crop writes −1 where mask and image are empty: outside.
- Where an image has both masks, nnssl writes each under the other's name; they are read accordingly.
- Images are z-scored, so foreground is what lies above the mean, 0.
- `valid_imgs.json` names the images that came through; others may be half-written and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.volumes.columns import INDEX_COLUMNS, Row
from viewalign.volumes.layout import beside, read_json
from viewalign.volumes.store import Corner, Store

_FILES = {"anonymisation": "__anon.b2nd", "anatomy": "__anat.b2nd"}
_OTHER = {"anonymisation": "anatomy", "anatomy": "anonymisation"}
_RECORD_KEYS = ("dataset_index", "subject_id", "session_id")


class PreprocessedStore(Store):
    """A dataset in nnssl's layout, offered as a store.

    Attributes:
        notes: sentences on what was assumed or left out.
    """

    notes: tuple[str, ...] = ()

    def read_mask(
        self, k: int, kind: str, start: Corner | None = None, stop: Corner | None = None
    ) -> NDArray[np.bool_] | None:
        """Read a box of a mask of image k; see `Store.read_mask`. Inside is what is above 0."""
        if not self.has_mask(k, kind):
            return None
        both = self.has_mask(k, _OTHER[kind])
        return np.asarray(self._read(k, _FILES[_OTHER[kind] if both else kind], start, stop)[0] > 0)

    def properties(self, k: int) -> dict[str, Any]:
        """Return what is known of image k without its pickle: id, subject, shape and spacing."""
        names = {"id": self.ids[k], "subject": self.subjects[k], "dataset": self.datasets[k]}
        return {**names, "shape": list(self.shape(k)), "spacing": list(self.spacing(k))}


def find_dataset(root: Path, dataset: str) -> Path:
    """Return the folder of a dataset in `$nnssl_preprocessed`.

    Args:
        root: the folder of the variable.
        dataset: an id such as "745", or a name such as "Dataset745_OpenMind".

    Raises:
        UserError: there is none, or more than one of that id.
    """
    if dataset.isdecimal():
        found = sorted(path for path in root.glob(f"Dataset{int(dataset):03d}_*") if path.is_dir())
    else:
        found = [root / dataset] if dataset and (root / dataset).is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"The id {dataset} is of {', '.join(path.name for path in found)}; name the dataset in full.")
    there = ", ".join(sorted(path.name for path in root.glob("Dataset*") if path.is_dir())) or "no dataset"
    raise UserError(
        f"There is no dataset {dataset} in $nnssl_preprocessed ({root}), which holds {there}. "
        f"{_command(dataset, 'onemmiso')}"
    )


def open_preprocessed(folder: Path, plans: str, configuration: str) -> PreprocessedStore:
    """Open a dataset that nnssl has preprocessed.

    Args:
        folder: `$nnssl_preprocessed/DatasetXXX_Name`.
        plans: name of the plans, such as "nnsslPlans".
        configuration: "onemmiso", "median" or "noresample".

    Raises:
        UserError: no plans, no such configuration, or no image that can be read.
    """
    settings = _configuration(folder, plans, configuration)
    root = folder / str(settings.get("data_identifier") or f"{plans}_{configuration}")
    spacing = settings.get("spacing")
    notes: list[str] = []
    if spacing is None:
        notes.append(f"{configuration} keeps each image's own voxel size, which only pickles tell; 1 mm is assumed.")
    files = _chosen(folder, sorted(root.glob("*/*/*/*/*.b2nd")), notes)
    rows = list(_rows(folder, files, tuple(spacing or (1.0, 1.0, 1.0)), notes))
    if not rows:
        why = "holds none that can be read" if root.is_dir() else "is not there"
        raise UserError(
            f"There are no preprocessed images in $nnssl_preprocessed for {configuration}: {root} {why}. "
            f"{_command(folder.name, configuration)}"
        )
    both = sum(row.anonymisation and row.anatomy for row in rows)
    if both:
        notes.append(f"{both} images have both masks, which nnssl writes under each other's names; they are read so.")
    columns = {name: [getattr(row, name) for row in rows] for name in INDEX_COLUMNS}
    recipe = {"spacing": spacing, "normalise": _normalisation(settings), "dtype": "float32"}
    store = PreprocessedStore(folder, {"recipe": recipe}, columns)
    store.notes = tuple(notes)
    return store


def _configuration(folder: Path, plans: str, configuration: str) -> Mapping[str, Any]:
    path = folder / f"{plans}.json"
    try:
        configurations = read_json(path)["configurations"]
        settings = configurations.get(configuration)
        spacing = None if settings is None else settings.get("spacing")
        if spacing is not None and not (len(spacing) == 3 and all(float(size) > 0 for size in spacing)):
            raise ValueError(f"the spacing of {configuration} is {spacing}")
    except FileNotFoundError:
        raise UserError(
            f"There are no plans {path} ($nnssl_preprocessed and -p name them). {_command(folder.name, configuration)}"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise UserError(f"The plans {path} cannot be used: {problem}.") from None
    if settings is None:
        raise UserError(f"{path} has no configuration {configuration}, only {', '.join(configurations)}.")
    return dict(settings)


def _normalisation(settings: Mapping[str, Any]) -> str:
    if settings.get("normalization_schemes", ["ZScoreNormalization"]) != ["ZScoreNormalization"]:
        return "none"
    return "foreground" if settings.get("use_mask_for_norm") == [True] else "zscore"


def _chosen(folder: Path, arrays: Sequence[Path], notes: list[str]) -> list[Path]:
    """Return the files of images, without masks and without what `valid_imgs.json` does not name."""
    there = {str(path) for path in arrays}
    masks = {path[: -len(".b2nd")] + suffix for path in there for suffix in _FILES.values()}
    images = [path for path in arrays if str(path) not in masks]
    valid = _valid_images(folder / "valid_imgs.json", notes)
    if valid is None:
        return images
    kept = [path for path in images if (*path.parts[-4:-1], path.stem) in valid]
    if images and not kept:
        notes.append("valid_imgs.json names none of the images that are there, and is not used.")
        return images
    if len(kept) < len(images):
        notes.append(f"{len(images) - len(kept)} images that valid_imgs.json does not name are left out.")
    return kept


def _valid_images(path: Path, notes: list[str]) -> set[tuple[str, ...]] | None:
    """Return (dataset, subject, session, image) of each record; None where there is no list or it is not understood."""
    if not path.is_file():
        return None
    try:
        records = read_json(path)
        records = list(records.values()) if isinstance(records, dict) else records
        return {(*(str(one[key]) for key in _RECORD_KEYS), _name(one)) for one in records}
    except (OSError, ValueError, TypeError, KeyError) as problem:
        notes.append(f"valid_imgs.json is not understood ({type(problem).__name__}: {problem}), and is not used.")
        return None


def _name(record: Mapping[str, Any]) -> str:
    return str(record["name"] if "name" in record else record["image_name"])


def _rows(folder: Path, files: Sequence[Path], spacing: tuple[float, ...], notes: list[str]) -> Iterator[Row]:
    refused = []
    for path in files:
        shape = _shape(path)
        if shape is None:
            refused.append(path)
            continue
        relative = path.relative_to(folder).as_posix().removesuffix(".b2nd")
        names = (*path.parts[-5:-1], path.stem)
        yield Row(
            id="__".join(names),
            path=relative,
            subject="__".join(names[:3]),
            dataset=names[1],
            modality="unknown",
            shape=shape,
            spacing=spacing,
            foreground_threshold=0.0,
            anonymisation=beside(folder, relative, _FILES["anonymisation"]).is_file(),
            anatomy=beside(folder, relative, _FILES["anatomy"]).is_file(),
        )
    if refused:
        notes.append(f"{len(refused)} images are damaged or no volumes and are left out, such as {refused[0]}.")


def _shape(path: Path) -> tuple[int, ...] | None:
    """Return (Z, Y, X) from an array's header alone; None where it is no volume."""
    try:
        shape = tuple(int(n) for n in blosc2.open(str(path), mode="r").shape)
    except (OSError, RuntimeError, ValueError, AttributeError):
        return None
    return shape[1:] if len(shape) == 4 and min(shape) > 0 else None


def _command(dataset: str, configuration: str) -> str:
    number = dataset.removeprefix("Dataset").split("_")[0]
    return f"nnssl makes it: `nnssl_plan_and_preprocess -d {number} -c {configuration}`."
