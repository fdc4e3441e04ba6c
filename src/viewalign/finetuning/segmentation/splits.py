"""Training and validation cases: cross-validation, few-shot samples and named cases, with patients kept together.

nnU-Net reads splits only as numbered folds of `splits_final.json`. Existing folds are kept and ours are appended; a
second file stores their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.utils.io import write_json
from viewalign.utils.rng import make_rng
from viewalign.utils.text import counted

FILE, NAMES = "splits_final.json", "viewalign_splits.json"
_FOLDS = 5
_NNUNET_SEED = 12345


@dataclass(frozen=True)
class Split:
    """Names of training and validation cases.

    Attributes:
        name: a description, such as "5 shots, seed 0".
        train, validation: names of cases.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]

    def as_json(self) -> dict[str, list[str]]:
        """Return a fold of `splits_final.json`."""
        return {"train": list(self.train), "val": list(self.validation)}


def patients_of(cases: Sequence[str], pattern: str | None = None) -> dict[str, str]:
    """Return the patient of each case: the first group of a regular expression, or its name if there is no pattern.

    Raises:
        UserError: the pattern is invalid, has no group, or does not match a name.
    """
    return {case: _patient_of(case, pattern) for case in cases}


def _patient_of(case: str, pattern: str | None) -> str:
    if pattern is None:
        return case
    try:
        found = re.search(pattern, case)
        patient = found and found[1]
    except (re.error, IndexError) as problem:
        raise UserError(
            f"patient={pattern!r}: {problem}; write a group around the patient, as in '(sub-\\d+)'."
        ) from None
    if patient is None:
        raise UserError(f"patient={pattern!r} does not match the case {case}.")
    return patient


def cross_validation(patients: Mapping[str, str], folds: int = _FOLDS) -> list[Split]:
    """Return the folds of a cross-validation; if each case is a patient they are the same as nnU-Net's.

    Args:
        patients: the patient of each case.
        folds: their number.

    Raises:
        UserError: fewer patients than folds.
    """
    from sklearn.model_selection import KFold

    patients = dict(sorted(patients.items()))
    groups = sorted(set(patients.values()))
    if len(groups) < folds:
        few = counted(len(groups), "case or patient", "cases or patients")
        raise UserError(f"{few}: too few for {folds} folds; train on all (fold=all).")
    splits = []
    for number, (_, index) in enumerate(KFold(folds, shuffle=True, random_state=_NNUNET_SEED).split(groups)):
        held_out = {groups[k] for k in index}
        train = tuple(case for case, patient in patients.items() if patient not in held_out)
        validation = tuple(case for case, patient in patients.items() if patient in held_out)
        splits.append(Split(_fold_name(number, folds), train, validation))
    return splits


def _fold_name(number: int, folds: int = _FOLDS) -> str:
    return f"fold {number} of {folds}"


def few_shot(patients: Mapping[str, str], held: Sequence[str], shots: int, seed: int) -> Split:
    """Sample training cases by patient, depending only on the seed and the names of patients.

    Samples of one seed are nested: the 5 shots are among the 10.

    Args:
        patients: the patient of each case, validation cases included; their patients are not sampled.
        held: validation cases.
        shots: number of patients.
        seed: of the sampling.

    Raises:
        UserError: fewer patients than shots.
    """
    available = sorted(set(patients.values()) - {patients[case] for case in held})
    if shots > len(available):
        raise UserError(
            f"shots={shots}: there are only {counted(len(available), 'case or patient', 'cases or patients')}."
        )
    order = make_rng(seed, "few-shot").permutation(len(available))
    drawn = {available[index] for index in order[:shots]}
    train = tuple(sorted(case for case, patient in patients.items() if patient in drawn))
    return Split(f"{shots} shots, seed {seed}", train, tuple(sorted(held)))


def given(patients: Mapping[str, str], train: Sequence[str] | None, validation: Sequence[str] | None) -> Split:
    """Return a split of named cases; if only training or validation cases are named, the others are all remaining.

    Args:
        patients: the patient of each case; other cases of named patients are on neither side.
        train, validation: named cases.

    Raises:
        UserError: a case is named for both, or none is left for one of them.
    """
    both = sorted(set(train or ()) & set(validation or ()))
    if both:
        raise UserError(f"{both[0]} is named for training and for validation.")
    name = "" if train is None else f"trained on {len(train)} and "
    train = _others(patients, validation or ()) if train is None else train
    validation = _others(patients, train) if validation is None else validation
    if not train or not validation:
        raise UserError("The named cases leave no case for training or none for validation.")
    return Split(f"{name}validated on {counted(len(validation), 'named case')}", tuple(train), tuple(validation))


def _others(patients: Mapping[str, str], cases: Sequence[str]) -> list[str]:
    """Return the cases of other patients."""
    named = {patients[case] for case in cases}
    return [case for case, patient in patients.items() if patient not in named]


def divided(patients: Mapping[str, str], split: Split) -> list[str]:
    """Return the patients on both sides of a split."""
    sides = ({patients.get(case, case) for case in side} for side in (split.train, split.validation))
    return sorted(set.intersection(*sides))


def distinct(splits: Sequence[Split]) -> list[Split]:
    """Return the splits without those that divide the cases as an earlier one does."""
    return list({_key(split.as_json()): split for split in reversed(splits)}.values())[::-1]


def add(folder: Path, splits: Sequence[Split], base: Sequence[Split]) -> list[int]:
    """Write splits into a dataset's folder and return their fold numbers.

    Args:
        folder: `nnUNet_preprocessed/DatasetXXX_NAME`.
        splits: to write; existing ones keep their number and name.
        base: nnU-Net's own folds, written first if there is no file.

    Raises:
        UserError: the file cannot be read.
    """
    present, names = read(folder), read_names(folder)
    if not present:
        present = [split.as_json() for split in base]
        names = {str(number): split.name for number, split in enumerate(base)}
    keys = [_key(fold) for fold in present]
    numbers = []
    for split in splits:
        key = _key(split.as_json())
        if key not in keys:
            present.append(split.as_json())
            names[str(len(keys))] = split.name
            keys.append(key)
        numbers.append(keys.index(key))
    write_json(folder / FILE, present)
    write_json(folder / NAMES, names)
    return numbers


def _key(fold: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(sorted(fold["train"])), tuple(sorted(fold["val"]))


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the folds of a dataset's `splits_final.json`, empty if there is no file.

    Raises:
        UserError: the file is not a list of splits.
    """
    file = folder / FILE
    if not file.is_file():
        return []
    try:
        tree = json.loads(file.read_text())
    except ValueError as problem:
        raise UserError(f"{file} is not valid JSON: {problem}.") from None
    if not isinstance(tree, list) or not all(isinstance(fold, dict) and {"train", "val"} <= set(fold) for fold in tree):
        raise UserError(f"{file} is not a list of splits with 'train' and 'val'.")
    return tree


def read_names(folder: Path) -> dict[str, str]:
    """Return the names of folds by number, for folds written by `add`."""
    file = folder / NAMES
    return json.loads(file.read_text()) if file.is_file() else {}


def first_folds(folder: Path) -> list[int]:
    """Return the numbers of the folds that were in the file before `add` appended samples and further folds.

    Earlier versions renamed some of these folds, but none that `add` appended is before the last one of them.
    """
    names, numbers = read_names(folder), range(len(read(folder)))
    first = [number for number in numbers if names.get(str(number)) in (None, _fold_name(number))]
    return list(range(first[-1] + 1)) if first else []
