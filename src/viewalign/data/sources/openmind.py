"""OpenMind as on the Hub, complete or a subset: `openneuro_metadata.csv` beside `OpenMind/ds000001/sub-01/…`.

The table lists each image with its masks, subject and scanner; rows whose file is missing are counted and
ignored. Without the table only the tree is read (`ds…/sub-…/[ses-…/]`). Each `ds…` is a dataset, so that `sub-01` of
one is never merged with `sub-01` of another.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from viewalign.data.catalogue import DEFAULT_SESSION, AssociatedMasks
from viewalign.data.sources.label_names import is_label
from viewalign.data.sources.naming import stated_names
from viewalign.data.sources.records import FindOptions, ImageRecord, Infos, SourceContents
from viewalign.data.sources.table import read_table
from viewalign.data.sources.walk import image_files
from viewalign.errors import UserError
from viewalign.utils.io import is_file, is_folder

TABLE = "openneuro_metadata.csv"
_DATASET = re.compile(r"ds\d{6}")
_OF_SUBJECT = ("age", "sex", "handedness", "race", "weight", "bmi", "health_status")
_OF_IMAGE = (
    "derived_from",
    "is_brain_extract",
    "manufacturer",
    "model_name",
    "phase_encoding_direction",
    "magnetic_field_strength",
    "repetition_time",
    "echo_time",
    "image_quality_score",
)


def is_root(folder: Path, files: Collection[str], folders: Collection[str]) -> bool:
    """Accept a folder with OpenMind's table, or one called `OpenMind` with folders `ds000001`."""
    return TABLE in files or (folder.name == "OpenMind" and any(_DATASET.fullmatch(name) for name in folders))


def find(root: Path, dataset: str, options: FindOptions) -> SourceContents:  # noqa: ARG001 - it names its datasets
    """List the downloaded images of OpenMind.

    Raises:
        UserError: the table has no column `image_path`.
    """
    return _by_table(root, options) if is_file(root / TABLE) else _by_tree(root, options)


def _by_table(root: Path, options: FindOptions) -> SourceContents:
    columns, rows = read_table(root / TABLE)
    if "image_path" not in columns:
        raise UserError(f"{root / TABLE} has no column `image_path`. Its columns: {', '.join(columns)}.")
    base, contents, absent = _images(root), SourceContents(), 0
    scores = _scores(rows)
    for row in rows:
        path = base / row.get("image_path", "").lstrip("/")
        if not path.is_file():
            absent += 1
            continue
        relative = PurePosixPath(path.relative_to(base).as_posix())
        masks = [
            str(base / row[key].lstrip("/")) if key in row else None for key in ("anon_mask_path", "anat_mask_path")
        ]
        found = _found(path, relative, row.get("modality"), options)
        infos = Infos(scores.get(found.dataset), _some(row, _OF_SUBJECT), None, _some(row, _OF_IMAGE))
        contents.found.append(
            ImageRecord(
                *(found.path, found.dataset, found.subject, found.session, found.name, found.modality),
                AssociatedMasks(*masks) if any(masks) else None,
                infos,
            )
        )
    if absent:
        contents.notes.append(f"{absent:,} of {len(rows):,} images of {TABLE} are not here (a subset was downloaded)")
    return contents


def _by_tree(root: Path, options: FindOptions) -> SourceContents:
    base, contents = _images(root), SourceContents()
    for path, stem in image_files(base, contents):
        relative = PurePosixPath(path.relative_to(base).as_posix())
        if not options.labels and is_label(relative, stem):
            contents.label_files.append(path)
        else:
            contents.found.append(_found(path, relative, None, options))
    contents.notes.append(f"{TABLE} is missing: there are no masks, quality scores and subject information")
    return contents


def _found(path: Path, relative: PurePosixPath, modality: str | None, options: FindOptions) -> ImageRecord:
    stem = relative.name.split(".")[0]
    stated = stated_names(relative, options.subject_pattern)
    return ImageRecord(
        path,
        relative.parts[0],
        stated.get("subject", stem),
        stated.get("session", DEFAULT_SESSION),
        stem,
        modality or stated.get("modality") or stem.rpartition("_")[2],
    )


def _images(root: Path) -> Path:
    return root / "OpenMind" if is_folder(root / "OpenMind") else root


def _some(row: dict[str, str], keys: tuple[str, ...]) -> dict[str, Any] | None:
    return {key: _number(row[key]) for key in keys if key in row} or None


def _number(text: str) -> str | float:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _scores(rows: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Group quality scores by dataset, modality and derivation, as in nnssl's `dataset_info`."""
    scores: dict[str, dict[tuple[str, str | None], float]] = defaultdict(dict)
    for row in rows:
        if isinstance(score := _number(row.get("image_quality_score", "")), float):
            dataset = row.get("image_path", "").lstrip("/").split("/")[0]
            scores[dataset][row.get("modality", ""), row.get("derived_from")] = score
    return {
        dataset: {
            "image_quality_score": [
                {"modality": modality, "derived_from": derived, "image_quality_score": score}
                for (modality, derived), score in entries.items()
            ]
        }
        for dataset, entries in scores.items()
    }
