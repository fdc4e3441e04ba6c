"""Which cases are trained on and which are held out: cross-validation and few-shot draws, patients kept whole.

nnU-Net knows splits only as numbered folds in `splits_final.json`. Folds that are there stay as they are; ours are
added behind them, and a file beside it says what each stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viewalign.errors import UserError
from viewalign.utils.io import atomic_write
from viewalign.utils.rng import make_rng

FILE, NAMES = "splits_final.json", "viewalign_splits.json"
_FOLDS = 5
_NNUNET_SEED = 12345


@dataclass(frozen=True)
class Split:
    """One division of cases.

    Attributes:
        name: what it stands for, such as "5 shots, seed 0".
        train, validation: names of cases.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]

    def as_json(self) -> dict[str, list[str]]:
        """Return it as nnU-Net writes it."""
        return {"train": list(self.train), "val": list(self.validation)}


def patient_of(case: str, pattern: str | None) -> str:
    """Return whose a case is: the first group of a regular expression found in its name, else the name itself.

    Raises:
        UserError: the pattern is no regular expression, has no group, or does not fit the name.
    """
    if pattern is None:
        return case
    try:
        found = re.search(pattern, case)
        return str(found[1]) if found else _unfit(case, pattern)
    except (re.error, IndexError) as problem:
        raise UserError(
            f"patient={pattern!r}: {problem}; write a group around the patient, as in '(sub-\\d+)'."
        ) from None


def _unfit(case: str, pattern: str) -> str:
    raise UserError(f"patient={pattern!r} does not fit the case {case}.")


def cross_validation(cases: Sequence[str], pattern: str | None = None, folds: int = _FOLDS) -> list[Split]:
    """Return the folds of a cross-validation; without patients the very ones that nnU-Net makes.

    Raises:
        UserError: fewer patients than folds.
    """
    from sklearn.model_selection import KFold

    patients = [patient_of(case, pattern) for case in sorted(cases)]
    groups = sorted(set(patients))
    if len(groups) < folds:
        raise UserError(f"{len(groups)} cases or patients are too few for {folds} folds; train on all (fold=all).")
    divided = KFold(folds, shuffle=True, random_state=_NNUNET_SEED).split(groups)
    splits = []
    for number, (_, held) in enumerate(divided):
        out = {groups[index] for index in held}
        pairs = list(zip(sorted(cases), patients, strict=True))
        splits.append(
            Split(
                f"fold {number} of {folds}",
                tuple(case for case, patient in pairs if patient not in out),
                tuple(case for case, patient in pairs if patient in out),
            )
        )
    return splits


def few_shot(pool: Sequence[str], held: Sequence[str], shots: int, seed: int, pattern: str | None = None) -> Split:
    """Draw a few training cases, whole patients at a time; a function of seed and patients' names alone.

    The draws of one seed are nested: its 5 shots are among its 10. So more shots never mean other cases.

    Args:
        pool: cases to draw from; those of held-out patients are left aside.
        held: cases to validate on.
        shots: how many patients.
        seed: of the draw.
        pattern: see `patient_of`.

    Raises:
        UserError: too few cases for that many shots.
    """
    out = {patient_of(case, pattern) for case in held}
    whose = {case: patient_of(case, pattern) for case in pool}
    patients = sorted(set(whose.values()) - out)
    if shots > len(patients):
        raise UserError(f"{shots} shots are asked for, but there are {len(patients)} cases or patients to draw from.")
    order = make_rng(seed, "few-shot").permutation(len(patients))
    drawn = {patients[index] for index in order[:shots]}
    train = tuple(sorted(case for case, patient in whose.items() if patient in drawn))
    return Split(f"{shots} shots, seed {seed}", train, tuple(sorted(held)))


def given(cases: Sequence[str], taught: Sequence[str] | None, held: Sequence[str] | None) -> Split:
    """Return the split of cases that are named; who is not named for one side is on the other where that names none.

    Raises:
        UserError: a case is named for both.
    """
    both = sorted(set(taught or ()) & set(held or ()))
    if both:
        raise UserError(f"{both[0]} is named for training and for validation.")
    train = [name for name in cases if name not in set(held or ())] if taught is None else taught
    validation = [name for name in cases if name not in set(train)] if held is None else held
    if not train or not validation:
        raise UserError("The cases that are named leave none to train on, or none to validate on.")
    start = "" if taught is None else f"trained on {len(train)} and "
    return Split(f"{start}validated on {len(validation)} given cases", tuple(train), tuple(validation))


def add(folder: Path, splits: Sequence[Split], base: Sequence[Split]) -> list[int]:
    """Write splits into a dataset's folder and return nnU-Net's numbers for them.

    Args:
        folder: `nnUNet_preprocessed/DatasetXXX_NAME`.
        splits: what is wanted; one that is there already keeps its number.
        base: written first where there is no file yet: nnU-Net's own folds.

    Raises:
        UserError: the file cannot be read.
    """
    present, names = read(folder), read_names(folder)
    if not present:
        present = [split.as_json() for split in base]
        names = {str(number): split.name for number, split in enumerate(base)}
    numbers = []
    for split in splits:
        wanted = split.as_json()
        number = next((k for k, one in enumerate(present) if _alike(one, wanted)), len(present))
        if number == len(present):
            present.append(wanted)
        names[str(number)] = split.name
        numbers.append(number)
    _write(folder / FILE, present)
    _write(folder / NAMES, names)
    return numbers


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(sorted(one.get(key, [])) == sorted(other[key]) for key in ("train", "val"))


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the splits of a dataset's folder; none where there is no file.

    Raises:
        UserError: the file is no list of splits.
    """
    file = folder / FILE
    if not file.is_file():
        return []
    try:
        tree = json.loads(file.read_text())
    except ValueError as problem:
        raise UserError(f"{file} is no JSON: {problem}.") from None
    if not isinstance(tree, list) or not all(isinstance(one, dict) and {"train", "val"} <= set(one) for one in tree):
        raise UserError(f"{file} is no list of splits with 'train' and 'val'.")
    return tree


def read_names(folder: Path) -> dict[str, str]:
    """Return what the numbers of a dataset's splits stand for, as far as we know."""
    file = folder / NAMES
    tree = json.loads(file.read_text()) if file.is_file() else {}
    return {str(key): str(value) for key, value in tree.items()}


def _write(file: Path, tree: Any) -> None:
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(tree, indent=1))
