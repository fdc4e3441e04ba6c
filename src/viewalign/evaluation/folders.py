"""A folder of predictions against a folder of references: who is judged, who is missing, and what it comes to."""

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
from viewalign.evaluation.segmentation_metrics import CaseScore, Rules, score_files

DEFAULT_TOLERANCE = 1.0
"""In mm, where none is given."""
_MOST_CLASSES = 1000
_NAMED = 4


def label_files(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by their names without ending, sorted.

    Raises:
        UserError: no folder, or two files of one name.
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
            raise UserError(f"{folder} holds {name} twice: {found[name].name} and {path.name}.")
        found[name] = path
    return found


def classes_of(predictions: Path, references: Path, description: Path | None = None) -> dict[str, tuple[int, ...]]:
    """Return which classes there are: by a `dataset.json`, else every value in the references.

    Args:
        predictions: a folder; its `dataset.json` is taken.
        references: a folder; a `dataset.json` in or above it is taken.
        description: a `dataset.json`.

    Raises:
        UserError: it cannot be read, or there is no class at all.
    """
    tree = _description(predictions, references, description)
    if tree is not None:
        return {name: values for name, values in _label_values(tree).items() if values != (0,) and name != "ignore"}
    values: set[int] = set()
    for path in label_files(references).values():
        image = sitk.ReadImage(str(path))  # kept by name: a view of an image that is gone shows freed memory
        values |= {round(value) for value in np.unique(sitk.GetArrayViewFromImage(image)).tolist()}
    values -= {0}
    if not values:
        raise UserError(f"The references in {references} hold no class but background.")
    if len(values) > _MOST_CLASSES:
        raise UserError(f"The references in {references} hold {len(values)} values; they are no label maps.")
    return {str(value): (value,) for value in sorted(values)}


def ignore_of(predictions: Path, references: Path, description: Path | None = None) -> int | None:
    """Return the ignore label that a `dataset.json` names, if there is one."""
    tree = _description(predictions, references, description) or {"labels": {}}
    value = tree["labels"].get("ignore")
    return None if value is None else int(value)


def _description(predictions: Path, references: Path, given: Path | None) -> dict[str, Any] | None:
    places = [given] if given else [f / "dataset.json" for f in (predictions, references, references.parent)]
    for file in places:
        if not file.is_file():
            continue
        try:
            tree: dict[str, Any] = json.loads(file.read_text())
            _label_values(tree)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file} is no dataset.json with labels by name.") from None
        return tree
    if given:
        raise UserError(f"There is no file {given}.")
    return None


def _label_values(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(int(one) for one in value) if isinstance(value, list | tuple) else (int(value),)
        for name, value in tree["labels"].items()
    }


def tolerances_of(text: str, classes: Iterable[str]) -> dict[str, float]:
    """Read tolerances in mm: `1.5` for every class, or `tumour=2,oedema=1` with 1 for the rest.

    Raises:
        UserError: no number, a negative one, or no such class.
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
            raise UserError(f"A tolerance is not negative and finite, so not {number}.")
        if sign and name not in names:
            raise UserError(f"There is no class {name!r} to set a tolerance for; there are {', '.join(names)}.")
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
    """Judge every reference that has a prediction, and tell which have none.

    Args:
        predictions: folder of label maps.
        references: folder of label maps that are called alike, whatever their endings.
        rules: how cases are judged.
        cases: names of the cases that are expected; None expects all references.
        processes: how many cases at a time.
        on_case: called with (done, total).

    Raises:
        UserError: no folder, or not one case to judge.
    """
    guesses, truths = label_files(predictions), label_files(references)
    expected = sorted(truths) if cases is None else sorted(cases)
    unknown = [name for name in expected if name not in truths]
    if unknown:
        raise UserError(f"{references} has no {', '.join(unknown[:_NAMED])}; references are needed for all cases.")
    present = [name for name in expected if name in guesses]
    if not present:
        raise UserError(f"None of the {len(expected)} references in {references} has a prediction in {predictions}.")
    jobs = {name: partial(score_files, name, guesses[name], truths[name], rules) for name in present}
    scores, excluded = _run(jobs, processes, on_case)
    if not scores:
        name, reason = next(iter(excluded.items()))
        raise UserError(f"No case could be judged. {name}: {reason}.")
    missing = tuple(name for name in expected if name not in guesses)
    extra = tuple(sorted(set(guesses) - set(truths)))
    return Evaluation(rules, tuple(scores), missing, excluded, extra)


def _run(
    jobs: Mapping[str, Callable[[], CaseScore]], processes: int, on_case: Callable[[int, int], None] | None
) -> tuple[list[CaseScore], dict[str, str]]:
    scores: list[CaseScore] = []
    excluded: dict[str, str] = {}

    def take(done: int, name: str, job: Callable[[], CaseScore]) -> None:
        try:
            scores.append(job())
        except UserError as problem:
            excluded[name] = str(problem)
        if on_case:
            on_case(done, len(jobs))

    if processes <= 1 or len(jobs) == 1:
        for done, (name, job) in enumerate(jobs.items(), start=1):
            take(done, name, job)
        return scores, excluded
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures: dict[str, Future[CaseScore]] = {name: pool.submit(job) for name, job in jobs.items()}
        for done, (name, future) in enumerate(futures.items(), start=1):
            take(done, name, future.result)
    return scores, excluded
