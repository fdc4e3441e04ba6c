"""Who is judged when: folds grouped by subject, stratified by class or by quantile, the same on every machine.

They follow from the sorted names of cases and a seed alone. Test cases are in no fold.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.errors import UserError
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.rng import derive_seed

_QUANTILES = 5


@dataclass(frozen=True)
class Fold:
    """Names of the cases that one model learns from and is judged on."""

    number: int
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Folds:
    """All folds of a task.

    Attributes:
        folds: in order.
        test: cases for a last judgement.
        how: in words.
        digest: changes whenever the folds do.
    """

    folds: tuple[Fold, ...]
    test: tuple[str, ...]
    how: str
    seed: int

    @property
    def digest(self) -> str:
        """Return 16 hex digits of who is where."""
        plain = [[list(fold.train), list(fold.held_out)] for fold in self.folds]
        return hashlib.sha256(json.dumps([plain, list(self.test)]).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        folds = [{"train": list(fold.train), "held_out": list(fold.held_out)} for fold in self.folds]
        return {"how": self.how, "seed": self.seed, "digest": self.digest, "folds": folds, "test": list(self.test)}


def make_folds(cases: Sequence[TaskCase], spec: TaskSpec, count: int, seed: int = 0, by_site: bool = False) -> Folds:
    """Split a task's training cases.

    Args:
        cases: all cases with their targets; folds of the manifest are taken as they are.
        spec: the task.
        count: how many folds, where the manifest names none; 1 teaches with all training cases and holds none out.
        seed: of the shuffle.
        by_site: hold out whole sites instead of subjects.

    Raises:
        UserError: too few subjects, sites or cases of a class; no test cases to judge a single fold by.
    """
    ordered = sorted((case for case in cases if case.split == "train"), key=lambda case: case.case)
    test = tuple(sorted(case.case for case in cases if case.split == "test"))
    if not ordered:
        raise UserError("There are no training cases.")
    if ordered[0].fold is not None:
        numbers, how = [int(case.fold or 0) for case in ordered], "as the manifest says"
    elif count == 1:
        return _all_teach(ordered, test, spec, seed)
    else:
        numbers, how = _assigned(ordered, spec, count, seed, by_site)
    folds = tuple(_fold(ordered, numbers, number) for number in sorted(set(numbers)))
    for fold in folds:
        _check(fold, ordered, spec)
    return Folds(folds, test, how, seed)


def _all_teach(cases: Sequence[TaskCase], test: tuple[str, ...], spec: TaskSpec, seed: int) -> Folds:
    if not test:
        raise UserError(
            "folds=1 teaches with all training cases, so test cases must be there to judge by: give them the split "
            "'test' in the manifest, or take folds=5."
        )
    check_learnable(cases, spec, "The one model")
    everyone = tuple(case.case for case in cases)
    return Folds((Fold(0, everyone, ()),), test, "all training cases teach, test cases judge", seed)


def _assigned(cases: Sequence[TaskCase], spec: TaskSpec, count: int, seed: int, by_site: bool) -> tuple[list[int], str]:
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [case.site if by_site else case.subject for case in cases]
    word = "site" if by_site else "subject"
    if by_site and "" in groups:
        raise UserError("Folds by site need a site for every case.")
    if len(set(groups)) < count:
        raise UserError(f"{count} folds need {count} {word}s or more; there are {len(set(groups))}.")
    kinds = strata(cases, spec, count)
    if np.bincount(kinds).max() < count:
        raise UserError(f"{count} folds need {count} cases of a class or more; no class has so many.")
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=derive_seed(seed, "folds") % 2**32)
    numbers = [0] * len(cases)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that a class has fewer members than folds is told by `_check` where it matters
        for number, (_, held_out) in enumerate(splitter.split(groups, kinds, groups)):
            for k in held_out:
                numbers[k] = number
    kind = "quantile" if spec.kind == "regression" else "class"
    return numbers, f"{count} folds by {word}, stratified by {kind}"


def strata(cases: Sequence[TaskCase], spec: TaskSpec, folds: int = 1) -> NDArray[np.int64]:
    """Return the class of each case, the quantile of its value, or the number of its combination of labels.

    There are up to five quantiles, fewer where one would have fewer members than there are `folds`.
    """
    targets = [case.target for case in cases]
    if spec.kind == "regression":
        values = np.array(targets, dtype=np.float64)
        parts = max(1, min(_QUANTILES, len(values) // max(1, folds)))
        edges = np.quantile(values, np.linspace(0, 1, parts + 1)[1:-1])
        return np.searchsorted(edges, values, side="right")
    if spec.kind == "multilabel":
        known = {target: number for number, target in enumerate(sorted(set(targets), key=str))}
        return np.array([known[target] for target in targets])
    return np.array(targets, dtype=np.int64)


def _fold(cases: Sequence[TaskCase], numbers: Sequence[int], number: int) -> Fold:
    train = tuple(case.case for case, n in zip(cases, numbers, strict=True) if n != number)
    held_out = tuple(case.case for case, n in zip(cases, numbers, strict=True) if n == number)
    return Fold(number, train, held_out)


def _check(fold: Fold, cases: Sequence[TaskCase], spec: TaskSpec) -> None:
    if not fold.train or not fold.held_out:
        raise UserError(f"Fold {fold.number} has no cases to {'judge' if fold.train else 'learn from'}.")
    check_learnable([case for case in cases if case.case in set(fold.train)], spec, f"Fold {fold.number}")


def check_learnable(cases: Sequence[TaskCase], spec: TaskSpec, name: str) -> None:
    """Refuse training cases that all have one answer, or lack a class.

    Raises:
        UserError: what is missing.
    """
    targets = {case.target for case in cases}
    if spec.kind in ("binary", "multiclass"):
        lacking = [word for k, word in enumerate(spec.classes) if k not in targets]
        if lacking:
            raise UserError(
                f"{name} would learn from no case of the class {', '.join(lacking)}; take fewer folds or leave it out."
            )
    elif len(targets) < 2:
        raise UserError(f"{name} would learn from cases that all have the target {targets.pop()}.")
