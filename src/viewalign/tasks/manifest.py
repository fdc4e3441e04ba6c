"""The cases of a task: a table with a row a case, in CSV or JSON lines.

Columns: `case`, `subject` (default: the case), `site`, `image.<channel>` for each channel or alias, `mask`, `target`,
`fold` (whole number) and `split` (`train` or `test`). Paths are relative to the table's folder. Several labels of a
multilabel case are joined by `|`.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from viewalign.errors import UserError
from viewalign.tasks.spec import TaskSpec, task_file

FILES = ("manifest.csv", "manifest.jsonl")
_IMAGE = "image."
_PLAIN = ("case", "subject", "site", "mask", "target", "fold", "split")
_NOTHING = ("", "n/a", "na", "nan", "none", "null")
_NAMED = 5
"""How many mistakes a message tells at most."""

Target = int | float | tuple[int, ...]
"""A class's number, a value, or 0 and 1 for each class of a multilabel task."""


@dataclass(frozen=True)
class TaskCase:
    """One row.

    Attributes:
        case: its name, unlike all others.
        subject: whose it is; a subject is never in two folds.
        images: files by channel or alias.
        mask: of the brain or the region of interest, on the voxels of the images.
        target: None where it is not known (prediction alone).
        site: where it comes from.
        fold: in which fold it is judged, where the manifest says so.
        split: test cases are for a last judgement and are never trained on.
    """

    case: str
    subject: str
    images: Mapping[str, Path] = field(hash=False)
    mask: Path | None = None
    target: Target | None = None
    site: str = ""
    fold: int | None = None
    split: Literal["train", "test"] = "train"


def read_manifest(path: str | Path, spec: TaskSpec, targets: bool = True) -> list[TaskCase]:
    """Read and check a task's cases, sorted by name.

    Args:
        path: the table, a task's folder or its YAML file.
        spec: the task; channels, classes and kind are checked against it.
        targets: whether every case must have one.

    Raises:
        UserError: all that is wrong, the first few mistakes by row.
    """
    file = manifest_file(path)
    rows = _rows(file)
    if not rows:
        raise UserError(f"{file} holds no cases.")
    _check_columns(rows, spec, file)
    cases, wrong = [], []
    for number, row in enumerate(rows, 1):
        try:
            cases.append(_case(row, spec, file.parent, targets))
        except UserError as problem:
            wrong.append(f"row {number} ({row.get('case') or 'no name'}): {problem}")
    wrong += _doubles(cases)
    if wrong:
        more = f" And {len(wrong) - _NAMED} more." if len(wrong) > _NAMED else ""
        raise UserError(f"{file} cannot be used: " + "; ".join(wrong[:_NAMED]) + "." + more)
    return sorted(cases, key=lambda case: case.case)


def manifest_file(path: str | Path) -> Path:
    """Return the table of a task given as a folder, as its YAML file or as the table itself."""
    given = Path(path)
    if given.is_file() and given.suffix.lower() in (".csv", ".jsonl"):
        return given
    folder = task_file(given).parent
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} holds no {' or '.join(FILES)}.")
    return file


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{file} cannot be read: {problem}.") from None
    if file.suffix.lower() == ".csv":
        return [
            {k.strip(): (v or "").strip() for k, v in row.items() if k} for row in csv.DictReader(text.splitlines())
        ]
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as problem:
                raise UserError(f"{file}, line {number}: no valid JSON ({problem}).") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number}: must be an object of keys and values.")
            rows.append(row)
    return rows


def _check_columns(rows: Sequence[Mapping[str, Any]], spec: TaskSpec, file: Path) -> None:
    known = {f"{_IMAGE}{word}" for channel in spec.channels for word in (channel.name, *channel.aliases)} | set(_PLAIN)
    columns = {column for row in rows for column in row}
    odd = sorted(column for column in columns - known if column.startswith(_IMAGE))
    if odd:
        raise UserError(
            f"{file} has a column {odd[0]}, but the task's channels are {', '.join(sorted(known - set(_PLAIN)))}."
        )
    if "case" not in columns:
        raise UserError(f"{file} has no column 'case'; it has {', '.join(sorted(columns))}.")


def _case(row: Mapping[str, Any], spec: TaskSpec, folder: Path, targets: bool) -> TaskCase:
    name = _text(row, "case")
    if not name:
        raise UserError("has no name in the column 'case'")
    images = {
        key.removeprefix(_IMAGE): folder / _text(row, key) for key in row if key.startswith(_IMAGE) and _text(row, key)
    }
    check_images(images, spec)
    split = _text(row, "split") or "train"
    if split not in ("train", "test"):
        raise UserError(f"split is '{split}', but must be train or test")
    mask = _text(row, "mask")
    target = parse_target(row.get("target"), spec)
    if target is None and targets:
        raise UserError("has no target")
    return TaskCase(
        name,
        _text(row, "subject") or name,
        images,
        folder / mask if mask else None,
        target,
        _text(row, "site"),
        _fold(_text(row, "fold")),
        "test" if split == "test" else "train",
    )


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value).strip()


def _fold(text: str) -> int | None:
    if not text:
        return None
    if not text.isdigit():
        raise UserError(f"fold is '{text}', but must be a whole number from 0")
    return int(text)


def check_images(images: Mapping[str, Path], spec: TaskSpec) -> None:
    """Refuse a case without any image, or without one that the task requires.

    Raises:
        UserError: what is missing.
    """
    if not images:
        raise UserError("has no image")
    for channel in spec.channels:
        words = (channel.name, *channel.aliases)
        if not channel.optional and not any(word in images for word in words):
            raise UserError(f"has no image of the channel {' or '.join(words)}")


def parse_target(value: Any, spec: TaskSpec) -> Target | None:
    """Read a target: a class by name or number, labels joined by `|`, or a number. None where there is none.

    Raises:
        UserError: an unknown class, or no finite number.
    """
    if value is None or (isinstance(value, str) and spec.kind != "multilabel" and value.strip().lower() in _NOTHING):
        return None
    if spec.kind == "regression":
        return _number(value, spec)
    if spec.kind == "multilabel":
        parts = value if isinstance(value, list) else [part.strip() for part in str(value).split("|") if part.strip()]
        if [str(part).lower() for part in parts] == ["n/a"]:
            return None
        present = {_class(part, spec) for part in parts}
        return tuple(int(k in present) for k in range(len(spec.classes)))
    return _class(value, spec)


def _number(value: Any, spec: TaskSpec) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"the target '{value}' is no number") from None
    if not math.isfinite(number):
        raise UserError(f"the target '{value}' is not finite")
    if spec.range is not None and not spec.range[0] <= number <= spec.range[1]:
        raise UserError(f"the target {number:g} lies outside the task's range {spec.range[0]:g} to {spec.range[1]:g}")
    return number


def _class(value: Any, spec: TaskSpec) -> int:
    text = str(value).strip()
    if text in spec.classes:
        return spec.classes.index(text)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if number in range(len(spec.classes)):
        return int(number)
    raise UserError(
        f"the target '{text}' is no class; classes are {', '.join(spec.classes)} (or 0 to {len(spec.classes) - 1})"
    )


def _doubles(cases: Iterable[TaskCase]) -> list[str]:
    """Return what is wrong between rows: names that stand twice, subjects in two folds or both splits."""
    everyone = list(cases)
    wrong = [f"the case {name} stands {n} times" for name, n in Counter(c.case for c in everyone).items() if n > 1]
    folds: dict[str, set[int | None]] = {}
    splits: dict[str, set[str]] = {}
    for case in everyone:
        splits.setdefault(case.subject, set()).add(case.split)
        if case.split == "train":
            folds.setdefault(case.subject, set()).add(case.fold)
    wrong += [
        f"the subject {who} is in the folds {sorted(map(str, which))}" for who, which in folds.items() if len(which) > 1
    ]
    wrong += [f"the subject {who} is in train and test" for who, which in splits.items() if len(which) > 1]
    given = {case.fold is None for case in everyone if case.split == "train"}
    return wrong + (["some cases have a fold and some have none"] if len(given) > 1 else [])


def write_manifest(cases: Sequence[TaskCase], spec: TaskSpec, folder: Path) -> Path:
    """Write `manifest.csv` into a task's folder; paths become relative where the images lie below it."""
    words = [word for channel in spec.channels for word in (channel.name, *channel.aliases)]
    used = [word for word in words if any(word in case.images for case in cases)]
    columns = ["case", "subject", "site", *(f"{_IMAGE}{word}" for word in used), "mask", "target", "fold", "split"]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILES[0]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for case in sorted(cases, key=lambda one: one.case):
            row = {"case": case.case, "subject": case.subject, "site": case.site, "split": case.split}
            row |= {f"{_IMAGE}{word}": _relative(path, folder) for word, path in case.images.items()}
            row["mask"] = "" if case.mask is None else _relative(case.mask, folder)
            row["fold"] = "" if case.fold is None else str(case.fold)
            row["target"] = target_text(case.target, spec)
            writer.writerow(row)
    return file


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path.absolute())


def target_text(target: Target | None, spec: TaskSpec) -> str:
    """Return a target as a table holds it: a class by its name, labels joined by `|`, a number in full."""
    if target is None:
        return ""
    if isinstance(target, tuple):
        return "|".join(name for name, there in zip(spec.classes, target, strict=True) if there)
    return spec.classes[int(target)] if spec.kind != "regression" else repr(float(target))
