"""Splits: nnU-Net's own folds, nested few-shot draws, patients kept whole, and folds of others kept."""

import json

import pytest

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import splits

CASES = [f"pat{patient:02d}_scan{scan}" for patient in range(12) for scan in range(2)]
PATIENT = r"(pat\d+)"


def test_without_patients_the_folds_are_nnunet_s_own():
    nnunet = pytest.importorskip("nnunetv2.utilities.crossval_split")
    names = [f"case_{k}" for k in range(23)]
    ours = [split.as_json() for split in splits.cross_validation(splits.patients_of(names))]
    theirs = nnunet.generate_crossval_split(sorted(names), seed=12345, n_splits=5)
    assert [{k: sorted(map(str, v)) for k, v in fold.items()} for fold in theirs] == [
        {k: sorted(v) for k, v in fold.items()} for fold in ours
    ]


def test_patients_are_never_divided():
    patients = splits.patients_of(CASES, PATIENT)
    for split in splits.cross_validation(patients):
        left = {patients[case] for case in split.train}
        right = {patients[case] for case in split.validation}
        assert not left & right
        assert len(split.train) + len(split.validation) == len(CASES)
    held = [CASES[0]]  # one scan of patient 0: the other must not be drawn either
    split = splits.few_shot(patients, held, 11, 0)
    assert "pat00_scan1" not in split.train
    assert len(split.train) == 22


def test_draws_are_nested_seeded_and_sized():
    patients = splits.patients_of(CASES, PATIENT)
    few, more = (splits.few_shot(patients, [], shots, 3) for shots in (3, 6))
    assert set(few.train) < set(more.train)
    assert len(few.train) == 6  # three patients of two scans
    assert splits.few_shot(patients, [], 3, 3) == few
    assert splits.few_shot(splits.patients_of(CASES[::-1], PATIENT), [], 3, 3) == few
    assert splits.few_shot(patients, [], 3, 4) != few
    assert (few.name, more.name) == ("3 shots, seed 3", "6 shots, seed 3")


def test_ours_are_added_behind_those_that_are_there(tmp_path):
    theirs = [{"train": ["a", "b"], "val": ["c"]}]
    (tmp_path / splits.FILE).write_text(json.dumps(theirs))
    one, two = splits.Split("one", ("a",), ("b",)), splits.Split("two", ("b",), ("c",))
    assert splits.add(tmp_path, [one, two], []) == [1, 2]
    assert splits.add(tmp_path, [two, splits.Split("theirs", ("b", "a"), ("c",))], []) == [2, 0]
    assert splits.read(tmp_path)[0] == theirs[0]
    assert len(splits.read(tmp_path)) == 3
    assert splits.read_names(tmp_path)["1"] == "one"


def test_the_dataset_s_own_folds_come_first_where_there_are_none(tmp_path):
    base = splits.cross_validation(splits.patients_of(CASES, PATIENT))
    assert splits.add(tmp_path, [splits.Split("mine", ("a",), ("b",))], base) == [5]
    assert splits.read(tmp_path)[:5] == [split.as_json() for split in base]


def test_what_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match=r"\b4\b.*5 folds"):
        splits.cross_validation(splits.patients_of(["a", "b", "c", "d"]))
    with pytest.raises(UserError, match="shots=30"):
        splits.few_shot(splits.patients_of(CASES, PATIENT), [], 30, 0)
    with pytest.raises(UserError, match=r"patient=.*\bx\b"):
        splits.patients_of(["x"] * 6, PATIENT)
    for pattern in ("(unclosed", "no group"):
        with pytest.raises(UserError, match="patient="):
            splits.patients_of(["no group"], pattern)
    for text in ("{", '{"train": []}'):
        (tmp_path / splits.FILE).write_text(text)
        with pytest.raises(UserError, match=splits.FILE):
            splits.read(tmp_path)


def test_named_cases_are_one_side_and_the_rest_the_other():
    names = splits.patients_of(["a", "b", "c", "d"])
    assert splits.given(names, None, ["d"]).train == ("a", "b", "c")
    assert splits.given(names, ["b"], None).validation == ("a", "c", "d")
    both = splits.given(names, ["a"], ["d"])
    assert (both.train, both.validation) == (("a",), ("d",))
    with pytest.raises(UserError, match=r"\bb\b.*validation"):
        splits.given(names, ["a", "b"], ["b"])
    with pytest.raises(UserError, match="training"):
        splits.given(names, None, list(names))


def test_other_cases_of_a_named_patient_are_on_neither_side():
    patients = splits.patients_of(CASES, PATIENT)
    held = splits.given(patients, None, ["pat03_scan0"])
    assert "pat03_scan1" not in held.train
    assert len(held.train) == 22
    learnt = splits.given(patients, ["pat03_scan0"], None)
    assert "pat03_scan1" not in learnt.validation
    assert not splits.divided(patients, held)
    both = splits.given(patients, ["pat03_scan0"], ["pat03_scan1", "pat04_scan0"])
    assert splits.divided(patients, both) == ["pat03"]


def test_equal_splits_count_once():
    sides = {"x": ("a", "b"), "y": ("b", "a"), "z": ("a",)}
    one, again, two = (splits.Split(name, train, ("c",)) for name, train in sides.items())
    assert [split.name for split in splits.distinct([one, again, two])] == ["x", "z"]
