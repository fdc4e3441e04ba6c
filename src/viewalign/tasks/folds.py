"""Cross-validation folds: grouped by subject or site, stratified by class or quantile of the target.

Folds depend only on the sorted case names and a seed. Test cases are in no fold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewalign.data.image_fingerprint import Fingerprint
from viewalign.data.near_copies import Groups
from viewalign.errors import UserError, usual_reason
from viewalign.tasks.copies import copies_among, report_divided
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec
from viewalign.utils.rng import derive_seed
from viewalign.utils.text import counted

_QUANTILES = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """Names of the training and held-out cases of one model."""

    number: int
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Folds:
    """All folds of a task.

    Attributes:
        folds: in order.
        test: names of the test cases.
        how: description of the split.
        seed: of the shuffle.
    """

    folds: tuple[Fold, ...]
    test: tuple[str, ...]
    how: str
    seed: int

    @property
    def digest(self) -> str:
        """16 hex digits that identify the assignment of cases."""
        plain = [[list(fold.train), list(fold.held_out)] for fold in self.folds]
        return hashlib.sha256(json.dumps([plain, list(self.test)]).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        folds = [{"train": list(fold.train), "held_out": list(fold.held_out)} for fold in self.folds]
        return {"how": self.how, "seed": self.seed, "digest": self.digest, "folds": folds, "test": list(self.test)}


def join_copies(cases: Sequence[TaskCase], fingerprints: Mapping[str, Fingerprint]) -> list[TaskCase]:
    """Give subjects that share copies of an image one name, so that folds by subject do not divide them.

    Copies among training and test cases, or in several folds of the manifest, are reported and stay where they are.

    Args:
        cases: all cases.
        fingerprints: of each case, by name.
    """
    copies = copies_among({case.case: case.subject for case in cases}, fingerprints)
    train, test = ([case.case for case in cases if case.split == split] for split in ("train", "test"))
    report_divided(copies, train, test, "test")
    for number in sorted({case.fold for case in cases if case.fold is not None}):
        held_out = [case.case for case in cases if case.fold == number and case.split == "train"]
        report_divided(copies, sorted({*train} - {*held_out}), held_out, f"held-out (fold {number} of the manifest)")
    return [replace(case, subject=copies.subject_of[case.case]) for case in cases]


def make_folds(
    cases: Sequence[TaskCase],
    spec: TaskSpec,
    count: int,
    seed: int = 0,
    by_site: bool = False,
    excluded: Sequence[tuple[str, str]] = (),
) -> Folds:
    """Split a task's training cases.

    Args:
        cases: all cases with targets; folds of the manifest are used if it has any.
        spec: the task.
        count: number of folds otherwise; 1 trains on all training cases and needs test cases.
        seed: of the shuffle.
        by_site: hold out whole sites instead of subjects; sites that share a subject count as one.
        excluded: name and reason of each unusable case, which explain why no training case is left.

    Raises:
        UserError: too few subjects, sites or cases of a class, no test cases for a single fold, or folds of the
            manifest together with `by_site` or a single fold.
    """
    train = sorted((case for case in cases if case.split == "train"), key=lambda case: case.case)
    test = tuple(sorted(case.case for case in cases if case.split == "test"))
    if not train:
        raise UserError(f"There are no training cases. {usual_reason(excluded)}".rstrip())
    given = train[0].fold is not None
    if given and (by_site or count == 1):
        setting = "by_site=true" if by_site else "folds=1"
        raise UserError(
            f"{setting} cannot be used with the folds of the manifest: remove the manifest's column fold, or {setting}."
        )
    if count == 1:
        return _single_fold(train, test, spec, seed)
    if given:
        numbers, how = [int(case.fold or 0) for case in train], "folds of the manifest"
    else:
        numbers, how = _assign(train, spec, count, seed, by_site)
    folds = []
    for number in sorted(set(numbers)):
        learn = [case for case, k in zip(train, numbers, strict=True) if k != number]
        held_out = tuple(case.case for case, k in zip(train, numbers, strict=True) if k == number)
        if not learn:
            raise UserError(f"Fold {number} has no training cases.")
        check_learnable(learn, spec, f"Fold {number}")
        folds.append(Fold(number, tuple(case.case for case in learn), held_out))
    return Folds(tuple(folds), test, how, seed)


def _single_fold(train: Sequence[TaskCase], test: tuple[str, ...], spec: TaskSpec, seed: int) -> Folds:
    if not test:
        raise UserError(
            "folds=1 trains on all training cases and needs test cases: set the split 'test' for some cases of the "
            "manifest, or use folds=5."
        )
    check_learnable(train, spec, "Fold 0")
    fold = Fold(0, tuple(case.case for case in train), ())
    return Folds((fold,), test, "train on all training cases, evaluate on the test cases", seed)


def _assign(cases: Sequence[TaskCase], spec: TaskSpec, count: int, seed: int, by_site: bool) -> tuple[list[int], str]:
    """Return the fold in which each case is held out, and a description."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = _joined_sites(cases, count) if by_site else [case.subject for case in cases]
    unit = "site" if by_site else "subject"
    if len(set(groups)) < count:
        raise UserError(f"{count} folds need at least {count} {unit}s; there are {len(set(groups))}.")
    classes = strata(cases, spec, count)
    if np.bincount(classes).max() < count:
        raise UserError(f"{count} folds need at least {count} cases of a class; no class has as many.")
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=derive_seed(seed, "folds") % 2**32)
    numbers = [0] * len(cases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes with fewer cases than folds; `check_learnable` rejects what matters
        for number, (_, held_out) in enumerate(splitter.split(groups, classes, groups)):
            for k in held_out:
                numbers[k] = number
    stratum = "quantile" if spec.kind == "regression" else "class"
    return numbers, f"{count} folds by {unit}, stratified by {stratum}"


def _joined_sites(cases: Sequence[TaskCase], count: int) -> list[str]:
    """Return a site for each case; sites that share a subject have one name, since no fold may divide a subject.

    Raises:
        UserError: a case has no site, or too few sites are left.
    """
    if any(not case.site for case in cases):
        raise UserError("Folds by site need a site for every case.")
    sites = sorted({case.site for case in cases})
    number = {site: k for k, site in enumerate(sites)}
    joined, first, travelled = Groups(len(sites)), dict[str, str](), set[str]()
    for case in cases:
        if first.setdefault(case.subject, case.site) != case.site:
            travelled.add(case.subject)
            joined.join(number[first[case.subject]], number[case.site])
    site_of = {site: sites[joined.find(k)] for site, k in number.items()}
    if travelled:
        some = f"{counted(len(travelled), 'subject')} (such as {min(travelled)}) in several sites"
        left = len(set(site_of.values()))
        if left < count:
            raise UserError(
                f"{some}: sites that share a subject are held out together, which leaves {left} for {count} folds. "
                "Use fewer folds, or remove these subjects."
            )
        _log.warning("There are %s; sites that share a subject are held out together.", some)
    return [site_of[case.site] for case in cases]


def strata(cases: Sequence[TaskCase], spec: TaskSpec, folds: int = 1) -> NDArray[np.int64]:
    """Return each case's class, the index of its label combination, or the quantile of its value.

    There are at most five quantiles, fewer if one would have fewer cases than `folds`. Label combinations with fewer
    cases than `folds` have one index together.
    """
    targets = [case.target for case in cases]
    if spec.kind == "regression":
        values = np.array(targets, dtype=np.float64)
        parts = max(1, min(_QUANTILES, len(values) // max(1, folds)))
        edges = np.quantile(values, np.linspace(0, 1, parts + 1)[1:-1])
        return np.searchsorted(edges, values, side="right")
    if spec.kind == "multilabel":
        found = Counter(targets)
        common = sorted((target for target, cases_of in found.items() if cases_of >= folds), key=str)
        index = {target: number for number, target in enumerate(common)}
        return np.array([index.get(target, len(common)) for target in targets], dtype=np.int64)
    return np.array(targets, dtype=np.int64)


def check_learnable(cases: Sequence[TaskCase], spec: TaskSpec, name: str) -> None:
    """Check that training cases contain every class, or more than one target.

    Args:
        cases: the training cases.
        spec: the task.
        name: of the fold or model, for the message.

    Raises:
        UserError: there are no cases, a class has no case, or all targets are equal.
    """
    if not cases:
        raise UserError(f"{name} has no training cases.")
    targets = {case.target for case in cases}
    if spec.kind in ("binary", "multiclass"):
        missing = [word for k, word in enumerate(spec.classes) if k not in targets]
        if missing:
            raise UserError(
                f"{name} has no training case of the class {', '.join(missing)}; use fewer folds or remove the class."
            )
    elif len(targets) < 2:
        raise UserError(f"{name} has training cases that all have the target {targets.pop()}.")
