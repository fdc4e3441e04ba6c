"""The manifest of a task: a table with one row per case, in CSV or JSON lines.

Columns, in small or capital letters: `case`, `subject` (default: the case), `site`, `image.<channel>` for each channel
or alias, `mask`, `target`, `fold` (integer), `split` (`train` or `test`) and `group.<variable>`, such as `group.sex`,
for figures by group. Others are ignored, unless they look like one of these. Paths are relative to the folder of the
manifest. Labels of a multilabel case are joined by `|`.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from viewalign.data.sources.table import read_table
from viewalign.errors import UserError, os_reason
from viewalign.tasks.spec import TaskSpec, task_file
from viewalign.utils.io import atomic_write, check_file_name, is_file
from viewalign.utils.tables import MISSING, identifier, is_number, known_columns, refuse_misspelt

FILES = ("manifest.csv", "manifest.jsonl")
TABLES = (".csv", ".tsv", ".jsonl")
"""Endings of manifests."""
_IMAGE, _GROUP = "image.", "group."
_KNOWN = ("case", "subject", "site", "mask", "target", "fold", "split")
_COLUMNS = {**{name: name for name in _KNOWN}, "caseid": "case", "subjectid": "subject", "participantid": "subject"}
"""Known columns by `column_key`."""
_MAX_REPORTED = 5

Target = int | float | tuple[int, ...]
"""A class index, a value, or 0 and 1 for each class of a multilabel task."""


@dataclass(frozen=True)
class TaskCase:
    """One row.

    Attributes:
        case: unique name.
        subject: subject of the images; all cases of a subject are in one fold.
        images: files by channel name or alias.
        mask: of the brain or the region of interest, on the voxel grid of the images.
        target: None if it is unknown (prediction).
        site: where the images were acquired.
        fold: in which the case is held out, if the manifest has folds.
        split: test cases are never used for training.
        groups: group of the subject by variable, such as sex; a variable that is unknown is not in it.
    """

    case: str
    subject: str
    images: Mapping[str, Path] = field(hash=False)
    mask: Path | None = None
    target: Target | None = None
    site: str = ""
    fold: int | None = None
    split: Literal["train", "test"] = "train"
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)


def read_manifest(path: str | Path, spec: TaskSpec, targets: bool = True) -> list[TaskCase]:
    """Read and validate a task's cases, sorted by name.

    Args:
        path: the manifest, the task's folder or its YAML file.
        spec: the task.
        targets: whether every case must have a target.

    Raises:
        UserError: the first few errors, by row.
    """
    file = manifest_file(path)
    rows = _read_rows(file)
    if not rows:
        raise UserError(f"{file} has no cases.")
    rows = _with_known_columns(rows, spec, file)
    cases, errors = [], []
    for number, row in enumerate(rows, 1):
        try:
            cases.append(_read_case(row, spec, file.parent, targets))
        except UserError as problem:
            errors.append(f"row {number} ({row.get('case') or 'unnamed'}): {problem}")
    errors += _inconsistencies(cases)
    if errors:
        more = f" And {len(errors) - _MAX_REPORTED} more." if len(errors) > _MAX_REPORTED else ""
        raise UserError(f"{file} cannot be used: " + "; ".join(errors[:_MAX_REPORTED]) + "." + more)
    return sorted(cases, key=lambda case: case.case)


def manifest_file(path: str | Path) -> Path:
    """Return the manifest of a task, from the task's folder, its YAML file or the manifest itself.

    Raises:
        UserError: there is none, or a file of another kind.
    """
    path = Path(path)
    if is_file(path) and path.suffix.lower() in TABLES:
        return path
    if is_file(path) and path.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{path} is no manifest: its name does not end in {', '.join(TABLES)}.")
    folder = task_file(path).parent
    file = next((folder / name for name in FILES if is_file(folder / name)), None)
    if file is None:
        raise UserError(f"{folder} has no {' or '.join(FILES)}.")
    return file


def _read_rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix.lower() in (".csv", ".tsv"):
        columns, table = read_table(file, missing=("",))
        return [dict.fromkeys(columns, "") | row for row in table]
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{file} cannot be read: {os_reason(problem)}.") from None
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise UserError(f"{file}, line {number}: invalid JSON ({problem}).") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: must be an object of keys and values.")
        rows.append(row)
    return rows


def _with_known_columns(rows: Sequence[Mapping[str, Any]], spec: TaskSpec, file: Path) -> list[dict[str, Any]]:
    """Return the rows with the names of the known columns as they are written here.

    Raises:
        UserError: no column `case`, two of one meaning, an image of no channel, or one that looks misspelt.
    """
    images = {_IMAGE + name for name in spec.image_names}
    columns = list(dict.fromkeys(column for row in rows for column in row))
    named = {column: name for column in columns if (name := _image_or_group(column))}
    known = known_columns(file, columns, _COLUMNS, named)
    unknown = sorted(name for name in known.values() if name.startswith(_IMAGE) and name not in images)
    if unknown:
        raise UserError(f"{file} has a column {unknown[0]}, but the task's channels are {', '.join(sorted(images))}.")
    if "case" not in known.values():
        raise UserError(f"{file} has no column 'case'; its columns are {', '.join(sorted(columns))}.")
    refuse_misspelt(file, columns, known, {*_KNOWN, *images})
    return [{known[column]: value for column, value in row.items() if column in known} for row in rows]


def _image_or_group(column: str) -> str:
    """Return the name of a column of images or groups, whose second part keeps its letters; "" of another column."""
    start = next((start for start in (_IMAGE, _GROUP) if column.strip().lower().startswith(start)), "")
    return start and start + column.strip()[len(start) :]


def _read_case(row: Mapping[str, Any], spec: TaskSpec, folder: Path, targets: bool) -> TaskCase:
    text = {key: "" if value is None else str(value).strip() for key, value in row.items()}
    name, split, mask = text.get("case", ""), text.get("split", "").lower() or "train", text.get("mask")
    fold = identifier(text.get("fold", ""))
    if not name:
        raise UserError("has no name in the column 'case'")
    check_file_name(name)
    images = {key.removeprefix(_IMAGE): folder / path for key, path in text.items() if key.startswith(_IMAGE) and path}
    check_images(images, spec)
    if split not in ("train", "test"):
        raise UserError(f"split is '{split}', but must be train or test")
    if fold and not re.fullmatch(r"\d+", fold, re.ASCII):
        raise UserError(f"fold is '{fold}', but must be an integer from 0")
    target = parse_target(row.get("target"), spec)
    if target is None and targets:
        raise UserError("has no target")
    return TaskCase(
        case=name,
        subject=identifier(text.get("subject") or name),
        images=images,
        mask=folder / mask if mask else None,
        target=target,
        site=text.get("site", ""),
        fold=int(fold) if fold else None,
        split="test" if split == "test" else "train",
        groups={key.removeprefix(_GROUP): part for key, part in text.items() if key.startswith(_GROUP) and part},
    )


def check_images(images: Mapping[str, Path], spec: TaskSpec) -> None:
    """Check that a case has at least one image, and one for each required channel.

    Raises:
        UserError: what is missing.
    """
    if not images:
        raise UserError("has no image")
    for channel in spec.channels:
        if not channel.optional and not any(word in images for word in channel.words):
            raise UserError(f"has no image of the channel {' or '.join(channel.words)}")


def parse_target(value: Any, spec: TaskSpec) -> Target | None:
    """Read a target: a class name or index, labels joined by `|`, or a number. None if there is none.

    Raises:
        UserError: an unknown class, or not a finite number in the task's range.
    """
    if spec.kind == "multilabel" and value is not None:
        labels = value if isinstance(value, list) else [part.strip() for part in str(value).split("|") if part.strip()]
        if [str(label).lower() for label in labels] == ["n/a"]:
            return None
        present = {_parse_class(label, spec) for label in labels}
        return tuple(int(k in present) for k in range(len(spec.classes)))
    unknown = value is None or (isinstance(value, str) and value.strip().lower() in MISSING)
    if unknown and (value is None or value.strip() not in spec.classes):
        return None
    return _parse_value(value, spec) if spec.kind == "regression" else _parse_class(value, spec)


def _parse_value(value: Any, spec: TaskSpec) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"the target '{value}' is not a number") from None
    if not math.isfinite(number):
        raise UserError(f"the target '{value}' is not finite")
    if spec.range is not None and not spec.range[0] <= number <= spec.range[1]:
        raise UserError(f"the target {number:g} is outside the task's range {spec.range[0]:g} to {spec.range[1]:g}")
    return number


def _parse_class(value: Any, spec: TaskSpec) -> int:
    text = str(value).strip()
    if text in spec.classes:
        return spec.classes.index(text)
    names, text = [identifier(name) for name in spec.classes], identifier(text)
    if text in names:
        return names.index(text)
    classes = f"classes are {', '.join(spec.classes)}"
    if not any(map(is_number, names)):  # else an index could be meant as a name
        if is_number(text) and float(text) in range(len(names)):
            return int(float(text))
        classes += f" (or 0 to {len(names) - 1})"
    raise UserError(f"the target '{text}' is not a class; {classes}")


def _inconsistencies(cases: Sequence[TaskCase]) -> list[str]:
    """Return errors between rows: repeated names, and subjects in several folds or in both splits."""
    folds: dict[str, set[int | None]] = defaultdict(set)
    splits: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        splits[case.subject].add(case.split)
        if case.split == "train":
            folds[case.subject].add(case.fold)
    errors = [f"the case {name} is listed {n} times" for name, n in Counter(c.case for c in cases).items() if n > 1]
    errors += [f"the subject {s} is in the folds {sorted(map(str, ks))}" for s, ks in folds.items() if len(ks) > 1]
    errors += [f"the subject {subject} is in train and test" for subject, both in splits.items() if len(both) > 1]
    if len({case.fold is None for case in cases if case.split == "train"}) > 1:
        errors.append("some cases have a fold and some have none")
    return errors


def write_manifest(cases: Sequence[TaskCase], spec: TaskSpec, folder: Path) -> Path:
    """Write `manifest.csv` into a task's folder, with relative paths for images below the folder."""
    used = [word for word in spec.image_names if any(word in case.images for case in cases)]
    columns = ["case", "subject", "site", *(_IMAGE + word for word in used), "mask", "target", "fold", "split"]
    columns += [_GROUP + name for name in sorted({name for case in cases for name in case.groups})]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILES[0]
    with atomic_write(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for case in sorted(cases, key=lambda case: case.case):
            row = {"case": case.case, "subject": case.subject, "site": case.site, "split": case.split}
            row |= {_IMAGE + word: _relative(path, folder) for word, path in case.images.items()}
            row |= {_GROUP + name: group for name, group in case.groups.items()}
            row["mask"] = "" if case.mask is None else _relative(case.mask, folder)
            row["fold"] = "" if case.fold is None else str(case.fold)
            row["target"] = target_text(case.target, spec)
            writer.writerow(row)
    return file


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path.absolute())


def target_text(target: Target | None, spec: TaskSpec) -> str:
    """Format a target for a table: a class name, labels joined by `|`, or the number in full precision."""
    if target is None:
        return ""
    if isinstance(target, tuple):
        return "|".join(name for name, present in zip(spec.classes, target, strict=True) if present)
    return spec.classes[int(target)] if spec.kind != "regression" else repr(float(target))
