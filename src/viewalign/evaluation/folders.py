"""Evaluate a folder of predicted segmentations against a folder of references."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from viewalign.data.file_types import suffix_of
from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.evaluation.results import Evaluation
from viewalign.evaluation.segmentation_metrics import CaseScore, Rules, read_labels, score_files
from viewalign.utils.main_guard import check_main_guard

DEFAULT_TOLERANCE = 1.0
"""In mm."""
_MAX_CLASSES = 1000
_MAX_REPORTED = 4


def label_files(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by file name without extension, sorted.

    Raises:
        UserError: no such folder, or two files with the same name.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = suffix_of(path.name)
        if suffix is None or not path.is_file():
            continue
        name = path.name[: -len(suffix)]
        if name in found:
            raise UserError(f"{folder} has {name} twice: {found[name].name} and {path.name}.")
        found[name] = path
    return found


def label_values(description: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the label values of each foreground class or region in the contents of a `dataset.json`."""
    values: dict[str, tuple[int, ...]] = {}
    for name, value in description["labels"].items():
        members = tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)
        if name != "ignore" and members != (0,):
            values[name] = members
    return values


def classes_of(predictions: Path, references: Path, description: Path | None = None) -> dict[str, tuple[int, ...]]:
    """Return the classes by name: those of a `dataset.json`, otherwise every value in the references.

    Args:
        predictions: folder; its `dataset.json` is used first.
        references: folder; a `dataset.json` in it or its parent is used next.
        description: a `dataset.json` to use instead.

    Raises:
        UserError: it, or every reference, cannot be read, or there are no classes.
    """
    tree = _description(predictions, references, description)
    if tree is not None:
        return label_values(tree)
    values: set[int] = set()
    unread: list[str] = []
    found = label_files(references)
    for path in found.values():
        try:
            image = read_labels(path)  # in a variable: the array view does not keep the image alive
        except UserError as problem:  # reported by the evaluation of this case
            unread.append(str(problem))
            continue
        values |= {round(value) for value in np.unique(sitk.GetArrayViewFromImage(image)).tolist()}
    if unread and len(unread) == len(found):
        raise UserError(f"No reference in {references} can be read: {unread[0]}.")
    values -= {0}
    if not values:
        raise UserError(f"The references in {references} have no class but background.")
    if len(values) > _MAX_CLASSES:
        raise UserError(f"The references in {references} have {len(values)} values; they are not label maps.")
    return {str(value): (value,) for value in sorted(values)}


def ignore_of(predictions: Path, references: Path, description: Path | None = None) -> int | None:
    """Return the ignore label of the `dataset.json` that `classes_of` uses, if it has one."""
    tree = _description(predictions, references, description) or {"labels": {}}
    value = tree["labels"].get("ignore")
    return None if value is None else int(value)


def _description(predictions: Path, references: Path, requested: Path | None) -> dict[str, Any] | None:
    if requested and not requested.is_file():
        raise UserError(f"There is no file {requested}.")
    candidates = (
        [requested] if requested else [f / "dataset.json" for f in (predictions, references, references.parent)]
    )
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        return None
    try:
        tree: dict[str, Any] = json.loads(file.read_text())
        label_values(tree)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not a dataset.json with labels by name.") from None
    return tree


def tolerances_of(text: str, classes: Iterable[str]) -> dict[str, float]:
    """Parse tolerances in mm: `1.5` for every class, or `tumour=2,oedema=1` with 1 for the others.

    Raises:
        UserError: not a number, a negative number, or an unknown class.
    """
    names = list(classes)
    tolerances = dict.fromkeys(names, DEFAULT_TOLERANCE)
    for part in filter(None, (word.strip() for word in text.split(","))):
        name, sign, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise UserError(f"A tolerance is a number of millimetres, not {number!r}.") from None
        if not 0 <= value < float("inf"):
            raise UserError(f"A tolerance must be finite and not negative, but is {number}.")
        if sign and name not in names:
            raise UserError(f"There is no class {name!r} for a tolerance; classes are {', '.join(names)}.")
        tolerances.update({name: value} if sign else dict.fromkeys(names, value))
    return tolerances


def evaluate_folder(
    predictions: Path,
    references: Path,
    rules: Rules,
    cases: Sequence[str] | None = None,
    processes: int = 1,
    on_case: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every reference that has a prediction, and report those without.

    Args:
        predictions: folder of label maps.
        references: folder of label maps with the same names; file formats may differ.
        rules: how cases are scored.
        cases: names of the expected cases; None expects all references.
        processes: number of processes.
        on_case: called with (done, total) after each case.

    Raises:
        UserError: no such folder, or no case could be evaluated.
    """
    predicted, truths = label_files(predictions), label_files(references)
    expected = sorted(truths) if cases is None else sorted(cases)
    unknown = [name for name in expected if name not in truths]
    if unknown:
        raise UserError(f"{references} has no {', '.join(unknown[:_MAX_REPORTED])}; every case needs a reference.")
    present = [name for name in expected if name in predicted]
    if not present:
        raise UserError(f"{predictions} has no prediction for any of the {len(expected):,} references in {references}.")
    jobs = {name: partial(score_files, name, predicted[name], truths[name], rules) for name in present}
    scores, excluded = _run(jobs, processes, on_case)
    if not scores:
        name, reason = next(iter(excluded.items()))
        raise UserError(f"No case could be evaluated. {name}: {reason}.")
    missing = tuple(name for name in expected if name not in predicted)
    extra = tuple(sorted(set(predicted) - set(truths)))
    return Evaluation(rules, tuple(scores), missing, excluded, extra)


def _run(
    jobs: Mapping[str, Callable[[], CaseScore]], processes: int, on_case: Callable[[int, int], None] | None
) -> tuple[list[CaseScore], dict[str, str]]:
    scores: list[CaseScore] = []
    excluded: dict[str, str] = {}

    def collect(done: int, name: str, result: Callable[[], CaseScore]) -> None:
        try:
            scores.append(result())
        except UserError as problem:
            excluded[name] = str(problem)
        if on_case:
            on_case(done, len(jobs))

    if processes <= 1 or len(jobs) == 1:
        for done, (name, job) in enumerate(jobs.items(), start=1):
            collect(done, name, job)
        return scores, excluded
    check_main_guard("viewalign.evaluate")
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures: dict[str, Future[CaseScore]] = {name: pool.submit(job) for name, job in jobs.items()}
        for done, (name, future) in enumerate(futures.items(), start=1):
            collect(done, name, future.result)
    return scores, excluded
