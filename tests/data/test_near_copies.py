from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from viewalign.data import near_copies
from viewalign.data.image_fingerprint import similarity
from viewalign.data.near_copies import SIMILAR, Groups, find_copies, similar_pairs
from viewalign.data.patients import patient_name


def fingerprints(count: int, seed: int = 0) -> list[NDArray[np.int8]]:
    rng = np.random.default_rng(seed)
    return [np.concatenate([[96], rng.integers(-100, 100, 343)]).astype(np.int8) for _ in range(count)]


def shifted(fingerprint: NDArray[np.int8], *shift: int) -> NDArray[np.int8]:
    cube = np.roll(fingerprint[1:].reshape(7, 7, 7), shift, axis=(0, 1, 2))
    return np.concatenate([fingerprint[:1], cube.ravel()])


@pytest.mark.parametrize("block", [3, 100])
def test_the_pairs_are_those_of_comparing_each_with_each(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(near_copies, "_BLOCK", block)
    found = fingerprints(8)
    rng = np.random.default_rng(1)
    noisy = found[2] + np.concatenate([[0], rng.integers(-20, 20, 343)])
    found += [shifted(found[0], 3, 1, 5), noisy.astype(np.int8), found[5].copy(), np.zeros(0, dtype=np.int8)]
    found[10][0] = 48  # of another torus
    subjects = list(range(12))
    plain = [(i, j) for i, j in combinations(range(11), 2) if similarity(found[i], found[j]) >= SIMILAR]
    assert sorted(similar_pairs(found, subjects)) == plain == [(0, 8), (2, 9)]
    subjects[8] = subjects[0]
    assert list(similar_pairs(found, subjects)) == [(2, 9)]


def test_subjects_that_share_copies_form_a_group_also_by_way_of_a_third() -> None:
    a, b, c, d, e, f, g = fingerprints(7)
    images = [a, b, shifted(b, 1, 2, 3), c, shifted(c, 4, 0, 0), d, e, f, g]
    subjects = ["anna", "anna", "ben", "ben", "cleo", "dora", "emil", "fred", "gina"]
    copies = find_copies(subjects, images)
    assert copies.group_of == {"anna": "anna", "ben": "anna", "cleo": "anna"}
    assert copies.images == [[1, 2], [3, 4]]


def test_equal_voxels_are_copies_whatever_the_fingerprint_and_within_a_subject_too() -> None:
    images = fingerprints(5)
    copies = find_copies(list("aabcd"), images, ["x", "x", "y", "y", None])
    assert copies.images == [[0, 1], [2, 3]]
    assert copies.group_of == {"b": "b", "c": "b"}


def test_images_that_are_all_alike_are_no_copies() -> None:
    (one,) = fingerprints(1)
    copies = find_copies(list("abcdef"), [one] * 6, ["p", "p", "q", "r", "s", "t"])
    assert copies.too_alike == 6
    assert copies.group_of == {"a": "a", "b": "a"}
    assert copies.images == [[0, 1]]


def test_equal_images_form_groups_of_any_size(monkeypatch) -> None:
    images = fingerprints(3)
    assert find_copies(list("abc"), images, ["x", "x", "y"]).group_of == {"a": "a", "b": "a"}
    copies = find_copies(list("abcde"), [images[0]] * 5, ["x"] * 5)
    assert (copies.group_of, copies.images) == (dict.fromkeys("abcde", "a"), [[0, 1, 2, 3, 4]])
    assert copies.too_alike == 0
    monkeypatch.setattr(near_copies, "similar_pairs", lambda *_: iter([(5, 6)]))
    copies = find_copies(list("abcdefghi"), [np.zeros(1, np.int8)] * 9, ["x"] * 5 + [None] * 4)
    assert copies.group_of == {**dict.fromkeys("abcde", "a"), "f": "f", "g": "f"}


def test_copies_are_listed_beside_images_that_are_too_alike(monkeypatch):
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (7, 8)]
    monkeypatch.setattr(near_copies, "similar_pairs", lambda *_: iter(pairs))
    copies = find_copies(list("abcdefghij"), [np.zeros(1, np.int8)] * 10)
    assert copies.too_alike == 5
    assert (copies.images, copies.group_of) == ([[7, 8]], {"h": "h", "i": "h"})


def test_a_patient_in_two_datasets_is_one_group() -> None:
    anna, nobody = patient_name("ANNA"), patient_name("0000")
    subjects = [f"c__{dataset}__{name}" for dataset in "ab" for name in (anna, nobody, "sub-01")]
    copies = find_copies(subjects, [np.zeros(0, np.int8)] * 6)
    assert copies.images == []
    assert copies.group_of == dict.fromkeys((f"c__a__{anna}", f"c__b__{anna}"), f"c__a__{anna}")


def test_groups() -> None:
    groups = Groups(6)
    groups.join(4, 1)
    groups.join(5, 4)
    groups.join(2, 3)
    assert groups.several() == [[1, 4, 5], [2, 3]]
    assert [groups.find(number) for number in range(6)] == [0, 1, 2, 2, 1, 1]
