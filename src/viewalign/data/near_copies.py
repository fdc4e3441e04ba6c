"""Copies among the images of a store or a task, and the groups that a split must not divide.

Copies are images whose prepared voxels are equal, and images of different subjects whose fingerprints are similar
(`image_fingerprint`): the same scan in another file format, shifted, defaced or resampled. Subjects with equal images
always form a group, whatever its size, and so do the subjects of two datasets that are one DICOM patient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from viewalign.data.image_fingerprint import Fingerprint, cubes, similarity
from viewalign.data.patients import patient_of

SIMILAR = 0.9
"""Least similarity of copies."""
_CANDIDATE = 0.85
"""Least correlation of the spectra's magnitudes, which shifts do not change, for the best shift to be searched."""
_LARGEST = 3
"""Most subjects that similarity joins, or a hundredth of all subjects: more are a class of similar images.

Subjects with equal images count as one."""
_BLOCK = 512  # fingerprints that are compared with all others at a time


@dataclass(frozen=True)
class Copies:
    """Copies among images that are numbered from 0.

    Attributes:
        images: groups of two or more copies.
        group_of: names the group of each subject that shares copies with another one, or is the same DICOM patient.
        too_alike: number of subjects in groups that similarity would make of more than half of the subjects, or of more
            than copies have: their images are too alike for the fingerprint. In such a group only equal images count.
    """

    images: list[list[int]]
    group_of: dict[str, str]
    too_alike: int


def find_copies(
    subjects: Sequence[str], fingerprints: Sequence[Fingerprint], checksums: Sequence[str | None] = ()
) -> Copies:
    """Find copies among images.

    Args:
        subjects: subject of each image.
        fingerprints: of each image; an empty one is not compared.
        checksums: of the voxels of each image; images without one are not compared by it.
    """
    names = sorted(set(subjects))
    number = {name: k for k, name in enumerate(names)}
    person = [number[name] for name in subjects]
    equal, alike = Groups(len(subjects)), Groups(len(subjects))
    certain, likely = Groups(len(names)), Groups(len(names))
    first: dict[str, int] = {}
    for k, checksum in enumerate(checksums):
        if checksum is not None:
            other = first.setdefault(checksum, k)
            _join((equal, alike), other, k)
            _join((certain, likely), person[other], person[k])
    known: dict[str, int] = {}
    for k, name in enumerate(names):
        if patient := patient_of(name):
            _join((certain, likely), known.setdefault(patient, k), k)
    for i, j in similar_pairs(fingerprints, person):
        alike.join(i, j)
        likely.join(person[i], person[j])
    units = len({certain.find(k) for k in range(len(names))})
    limit = min(max(_LARGEST, units // 100), units // 2)
    too_large = [group for group in likely.several() if len({certain.find(k) for k in group}) > max(limit, 1)]
    apart = {k for group in too_large for k in group}
    chosen = [group for group in likely.several() if group[0] not in apart]
    chosen += [group for group in certain.several() if group[0] in apart]
    images = [group for group in alike.several() if person[group[0]] not in apart]
    images += [group for group in equal.several() if person[group[0]] in apart]
    return Copies(images, {names[k]: names[group[0]] for group in chosen for k in group}, len(apart))


def _join(every: Sequence[Groups], first: int, second: int) -> None:
    for groups in every:
        groups.join(first, second)


def similar_pairs(fingerprints: Sequence[Fingerprint], subjects: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the pairs (i < j) of images of different subjects whose similarity is at least `SIMILAR`.

    Fingerprints are compared by products of matrices, block by block: as they are, and by the magnitudes of their
    spectra, which select the pairs whose best shift is searched.
    """
    compared = [(k, each) for k, each in enumerate(fingerprints) if each[1:].any()]
    for length in sorted({int(each[0]) for _, each in compared}):
        chosen = np.array([k for k, each in compared if each[0] == length])
        values = np.stack([each for _, each in compared if each[0] == length])
        people = np.asarray(subjects)[chosen]
        direct, magnitudes = _unit(cubes(values).reshape(len(values), -1)), _unit(_magnitudes(values))
        for start in range(0, len(chosen), _BLOCK):
            rows, others = slice(start, start + _BLOCK), slice(start, None)
            different = np.triu(people[rows, None] != people[None, others], 1)
            alike = (direct[rows] @ direct[others].T >= SIMILAR) & different
            candidates = (magnitudes[rows] @ magnitudes[others].T >= _CANDIDATE) & different
            for a, b in np.argwhere(alike | candidates):
                if alike[a, b] or similarity(values[start + a], values[start + b]) >= SIMILAR:
                    yield int(chosen[start + a]), int(chosen[start + b])


def _magnitudes(values: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return square roots of the magnitudes of the spectra, less their mean."""
    found = []
    for start in range(0, len(values), _BLOCK):
        spectra = np.fft.rfftn(cubes(values[start : start + _BLOCK]), axes=(1, 2, 3))
        found.append(np.sqrt(np.abs(spectra)).reshape(len(spectra), -1).astype(np.float32))
    roots = np.concatenate(found)
    roots -= roots.mean(axis=1, keepdims=True)
    return roots


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-30))
    return unit


class Groups:
    """Sets of the numbers 0 to n − 1 that are joined step by step (union-find); its smallest number names a group."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, number: int) -> int:
        """Return the name of a number's group."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def join(self, first: int, second: int) -> None:
        """Make one group of two."""
        a, b = sorted((self.find(first), self.find(second)))
        self._parent[b] = a

    def several(self) -> list[list[int]]:
        """Return the groups of at least two, sorted."""
        members: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self._parent)):
            members[self.find(number)].append(number)
        return [group for _, group in sorted(members.items()) if len(group) > 1]
