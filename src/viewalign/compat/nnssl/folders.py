"""nnssl's folders, set by environment variables, and the files of a dataset.

```
$nnssl_raw/DatasetXXX_Name/pretrain_data.json
$nnssl_preprocessed/DatasetXXX_Name/dataset_fingerprint.json, nnsslPlans.json, valid_imgs.json, splits_final.json,
                                    pretrain_data__<configuration>.json
    <plans>_<configuration>/<collection>/<dataset>/<subject>/<session>/
        <image>.b2nd          voxels (1, Z, Y, X), float32
        <image>__anon.b2nd    anonymisation mask
        <image>__anat.b2nd    anatomy mask
        <image>.pkl           nnssl's properties, pickled; never read
        <image>.json          viewalign's properties; written last, when the image is complete
$nnssl_results/DatasetXXX_Name/<Trainer>__<Plans>__<configuration>/fold_all
```
"""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from viewalign.data.catalogue import AssociatedMasks, Collection, write_catalogue
from viewalign.data.file_types import suffix_of
from viewalign.errors import UserError

CONFIGURATIONS = ("onemmiso", "median", "noresample")
MASK_FILES = {"anonymisation": "__anon.b2nd", "anatomy": "__anat.b2nd"}
FINGERPRINT, VALID, SPLITS = "dataset_fingerprint.json", "valid_imgs.json", "splits_final.json"
REPLACEMENT = "rocket_preprocessed"
"""A variable that replaces `nnssl_preprocessed` if it is set."""

_MAX_NAME_LENGTH = 200


def variable_folder(name: str, make: bool = False) -> Path:
    """Return the folder of one of nnssl's environment variables.

    Args:
        name: "nnssl_raw", "nnssl_preprocessed" or "nnssl_results".
        make: whether the folder may be missing, because it will be created.

    Raises:
        UserError: the variable is not set, or the folder does not exist.
    """
    if name == "nnssl_preprocessed" and os.environ.get(REPLACEMENT):
        name = REPLACEMENT
    value = os.environ.get(name, "")
    if not value:
        raise UserError(f"The environment variable {name} is not set; set it to nnssl's folder: export {name}=FOLDER.")
    folder = Path(value)
    if not make and not folder.is_dir():
        raise UserError(f"The environment variable {name} is {folder}, and there is no such folder.")
    return folder


def find_dataset(root: Path, dataset: str, variable: str = "nnssl_preprocessed") -> Path:
    """Return the folder of a dataset.

    Args:
        root: the folder of the variable.
        dataset: an id such as "745", or a name such as "Dataset745_OpenMind".
        variable: name of the variable, for messages.

    Raises:
        UserError: there is none, or several with that id.
    """
    if dataset.isdecimal():
        found = sorted(path for path in root.glob(f"Dataset{int(dataset):03d}_*") if path.is_dir())
    else:
        found = [root / dataset] if dataset and (root / dataset).is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"Several datasets have the id {dataset}: {', '.join(path.name for path in found)}; use the full name."
        )
    present = ", ".join(sorted(path.name for path in root.glob("Dataset*") if path.is_dir())) or "no dataset"
    remedy = (
        "Create DatasetXXX_Name/pretrain_data.json there with `viewalign index SCANS -o FILE`."
        if variable == "nnssl_raw"
        else creation_hint(dataset, "onemmiso")
    )
    raise UserError(f"There is no dataset {dataset} in ${variable} ({root}), which has {present}. {remedy}")


def creation_hint(dataset: str, configuration: str) -> str:
    """Return a sentence with the command that creates a missing dataset."""
    number = dataset.removeprefix("Dataset").split("_")[0]
    return f"Create it with `nnssl_plan_and_preprocess -d {number} -c {configuration}`."


def image_place(collection: str, dataset: str, subject: str, session: str, image: str, taken: Container[str]) -> str:
    """Return the path of an image in `<plans>_<configuration>`, without suffix, as built by nnssl from the names.

    The file extension is removed from the image's name unless another image has that path.

    Raises:
        ValueError: a name that cannot be that of a file; the text is the reason.
    """
    parts = (collection, dataset, subject, session, image)
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\0" in part or len(part) > _MAX_NAME_LENGTH:
            raise ValueError(f"{part!r} cannot be used as a file name, as nnssl's layout requires")
    full = "/".join(parts)
    bare = full.removesuffix(suffix_of(image) or "")
    return full if bare in taken or bare.endswith("/") else bare


CATALOGUE = "pretrain_data.json"


def write_raw_dataset(root: Path, name: str, catalogue: Collection) -> Path:
    """Write a catalogue as a raw dataset, without copying images, and return the file.

    Paths below `root` are written as `$nnssl_raw/…`, so that the folder can be moved.

    Args:
        root: folder of the variable.
        name: such as "Dataset745_OpenMind".
        catalogue: with absolute paths.
    """
    for dataset in catalogue.datasets.values():
        for subject in dataset.subjects.values():
            for session in subject.sessions.values():
                session.images = [
                    replace(
                        image,
                        image_path=_portable(image.image_path, root),
                        associated_masks=_portable_masks(image.associated_masks, root),
                    )
                    for image in session.images
                ]
    path = root / name / CATALOGUE
    write_catalogue(catalogue, path)
    return path


def _portable_masks(masks: AssociatedMasks | None, root: Path) -> AssociatedMasks | None:
    if masks is None:
        return None
    paths = (masks.anonymization_mask, masks.anatomy_mask)
    return AssociatedMasks(*(path and _portable(path, root) for path in paths))


def _portable(text: str, root: Path) -> str:
    path, base = Path(text), root.absolute()
    return f"$nnssl_raw/{path.relative_to(base).as_posix()}" if path.is_relative_to(base) else text
