"""Folds: no subject in two of them, every class in each, the same for any order of the cases."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from viewalign.errors import UserError
from viewalign.tasks.folds import check_learnable, join_copies, make_folds, strata
from viewalign.tasks.manifest import TaskCase
from viewalign.tasks.spec import TaskSpec

BINARY = TaskSpec.model_validate({"name": "x", "kind": "binary", "channels": [{"name": "a"}], "classes": ["n", "y"]})
AGE = TaskSpec.model_validate({"name": "x", "kind": "regression", "channels": [{"name": "a"}]})
FINDINGS = TaskSpec.model_validate(
    {"name": "x", "kind": "multilabel", "channels": [{"name": "a"}], "classes": [f"l{k}" for k in range(14)]}
)


def cases(targets, per_subject=2, **more):
    named = enumerate(targets)
    return [TaskCase(f"c{k:02d}", f"s{k // per_subject:02d}", {"a": Path("x")}, target=t, **more) for k, t in named]


def test_subjects_and_classes():
    everyone = cases([k // 2 % 2 for k in range(40)])
    folds = make_folds(everyone, BINARY, 5)
    subject, target = ({c.case: getattr(c, what) for c in everyone} for what in ("subject", "target"))
    assert sorted(name for fold in folds.folds for name in fold.held_out) == [c.case for c in everyone]
    for fold in folds.folds:
        assert not {subject[n] for n in fold.train} & {subject[n] for n in fold.held_out}
        assert {target[n] for n in fold.held_out} == {0, 1}


def test_values_are_spread_over_folds():
    folds = make_folds(cases(np.arange(50.0), 1), AGE, 5)
    for fold in folds.folds:
        assert 20 < np.mean([int(name[1:]) for name in fold.held_out]) < 30


def test_subjects_that_share_a_copy_of_an_image_are_in_one_fold(caplog):
    everyone = cases([k // 2 % 2 for k in range(40)])
    rng = np.random.default_rng(0)
    prints = {c.case: np.append(96, rng.integers(-99, 99, 343)).astype(np.int8) for c in everyone}
    prints["c31"] = prints["c02"]  # subjects s15 and s01
    joined = join_copies(everyone, prints)
    assert {c.case: c.subject for c in joined if c.case in ("c02", "c03", "c30", "c31")} == dict.fromkeys(
        ("c02", "c03", "c30", "c31"), "s01"
    )
    assert "c02, c31" in caplog.text
    for seed in range(5):
        folds = make_folds(joined, BINARY, 5, seed)
        where = {name: fold.number for fold in folds.folds for name in fold.held_out}
        assert where["c02"] == where["c31"]
    assert join_copies(everyone, {**prints, "c31": np.zeros(0, dtype=np.int8)}) == everyone


def test_an_image_under_many_names_is_in_one_fold():
    everyone = cases([k % 2 for k in range(40)], 1)
    rng = np.random.default_rng(0)
    prints = {c.case: np.append(96, rng.integers(-99, 99, 343)).astype(np.int8) for c in everyone}
    same = [f"c{k:02d}" for k in range(0, 30, 4)]
    prints |= dict.fromkeys(same, prints["c00"])
    joined = {c.case: c.subject for c in join_copies(everyone, prints)}
    assert {joined[name] for name in same} == {"s00"}
    assert len(set(joined.values())) == 40 - len(same) + 1


def test_copies_in_training_and_test_cases_are_reported(caplog):
    everyone = [*cases([0, 1, 0, 1, 0, 1], 1), TaskCase("t", "other", {"a": Path("x")}, target=1, split="test")]
    rng = np.random.default_rng(0)
    prints = {c.case: np.append(96, rng.integers(-99, 99, 343)).astype(np.int8) for c in everyone}
    prints["t"] = prints["c04"]
    join_copies(everyone, prints)
    assert "Training and test cases contain copies: c04, t." in caplog.text


def test_order_and_seed():
    everyone = cases([k // 2 % 2 for k in range(40)])
    mixed = random.Random(0).sample(everyone, len(everyone))
    assert make_folds(everyone, BINARY, 4) == make_folds(mixed, BINARY, 4)
    assert make_folds(everyone, BINARY, 4).digest != make_folds(everyone, BINARY, 4, seed=1).digest


@pytest.mark.long
def test_the_hash_seed_of_python_changes_nothing():
    program = (
        "from pathlib import Path\n"
        "from viewalign.tasks.folds import make_folds\n"
        "from viewalign.tasks.manifest import TaskCase\n"
        "from viewalign.tasks.spec import TaskSpec\n"
        "s = TaskSpec.model_validate({'name':'x','kind':'binary','channels':[{'name':'a'}],'classes':['n','y']})\n"
        "c = {TaskCase(f'c{k}', f'c{k}', {'a': Path('x')}, target=k % 2) for k in range(20)}\n"
        "print(make_folds(list(c), s, 3).digest)\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_test_cases_are_in_no_fold_and_given_folds_are_kept():
    everyone = [TaskCase(f"c{k}", f"c{k}", {"a": Path("x")}, target=k % 2, fold=k // 4) for k in range(12)]
    test = TaskCase("t", "t", {"a": Path("x")}, target=1, split="test")
    folds = make_folds([*everyone, test], BINARY, 5)
    assert [fold.held_out for fold in folds.folds] == [
        tuple(f"c{k}" for k in sorted(range(4 * n, 4 * n + 4), key=str)) for n in range(3)
    ]
    assert folds.test == ("t",)
    assert all("t" not in fold.train + fold.held_out for fold in folds.folds)


def test_one_fold_trains_on_all_and_needs_test_cases():
    everyone = cases([k % 2 for k in range(6)])
    test = TaskCase("t", "t", {"a": Path("x")}, target=0, split="test")
    folds = make_folds([test, *everyone], BINARY, 1)
    assert [fold.train for fold in folds.folds] == [tuple(c.case for c in everyone)]
    assert [fold.held_out for fold in folds.folds] == [()]
    assert folds.test == ("t",)
    with pytest.raises(UserError, match="test"):
        make_folds(everyone, BINARY, 1)
    with pytest.raises(UserError, match="class y"):
        make_folds([*cases([0, 0, 0]), test], BINARY, 1)


def test_sites_are_held_out_whole():
    everyone = [TaskCase(f"c{k}", f"c{k}", {"a": Path("x")}, target=k % 2, site=f"site{k // 6}") for k in range(24)]
    for fold in make_folds(everyone, BINARY, 4, by_site=True).folds:
        assert len({int(name[1:]) // 6 for name in fold.held_out}) == 1


def test_sites_that_share_a_subject_are_held_out_together(caplog):
    """A subject was scanned in sites 0 and 1, another in 1 and 2: no fold may learn from who it is tested on."""
    subjects = {6: "c0", 12: "c7"}
    everyone = [
        TaskCase(f"c{k:02d}", subjects.get(k, f"c{k}"), {"a": Path("x")}, target=k % 2, site=f"site{k // 6}")
        for k in range(36)
    ]
    subject = {case.case: case.subject for case in everyone}
    folds = make_folds(everyone, BINARY, 4, by_site=True).folds
    for fold in folds:
        assert not {subject[name] for name in fold.train} & {subject[name] for name in fold.held_out}
    assert {len(fold.held_out) for fold in folds} == {6, 18}
    assert "2 subjects (such as c0)" in caplog.text
    with pytest.raises(UserError, match="leaves 4 for 5 folds"):
        make_folds(everyone, BINARY, 5, by_site=True)


def test_copies_in_several_folds_of_the_manifest_are_reported(caplog):
    everyone = [replace(case, fold=k % 2) for k, case in enumerate(cases([0, 1, 0, 1, 0, 1], 1))]
    rng = np.random.default_rng(0)
    prints = {c.case: np.append(96, rng.integers(-99, 99, 343)).astype(np.int8) for c in everyone}
    prints["c03"] = prints["c00"]
    join_copies(everyone, prints)
    assert "fold 0" in caplog.text
    assert caplog.text.count("contain copies: c00, c03") == 2


@pytest.mark.parametrize(
    ("more", "setting"), [({"count": 5, "by_site": True}, "by_site=true"), ({"count": 1}, "folds=1")]
)
def test_folds_of_the_manifest_do_not_override_settings(more, setting):
    everyone = [replace(case, fold=k % 3, site=f"site{k % 2}") for k, case in enumerate(cases([0, 1] * 6, 1))]
    test = TaskCase("t", "t", {"a": Path("x")}, target=0, split="test")
    with pytest.raises(UserError, match=f"{setting} cannot be used .* remove the manifest's column fold"):
        make_folds([*everyone, test], BINARY, **more)


def test_label_combinations_that_are_all_different_can_be_split():
    """Five hundred cases with 14 labels have hardly a combination twice."""
    rng = np.random.default_rng(0)
    everyone = cases([tuple(row) for row in rng.integers(0, 2, (40, 14)).tolist()], 1)
    folds = make_folds(everyone, FINDINGS, 5).folds
    assert sorted(len(fold.held_out) for fold in folds) == [8] * 5


def test_rare_label_combinations_are_one_stratum():
    one, two, *rare = [tuple(int(j == k) for j in range(14)) for k in range(5)]
    everyone = cases([one, two, rare[0], one, two, rare[1], one, two, rare[2]], 1)
    assert strata(everyone, FINDINGS, 3).tolist() == [1, 0, 2] * 3
    assert len(set(strata(everyone, FINDINGS).tolist())) == 5


def test_no_training_cases_has_a_reason():
    reasons = [(f"c{k}", f"im/c{k}.nii does not exist") for k in range(3)]
    with pytest.raises(UserError, match=r"no training cases\. .*\(3 of 3\), as for c0: im/c0.nii does not exist"):
        make_folds([], BINARY, 5, excluded=reasons)
    for spec in (BINARY, AGE):
        with pytest.raises(UserError, match="The probe has no training cases"):
            check_learnable([], spec, "The probe")


@pytest.mark.parametrize(
    ("everyone", "spec", "count", "told"),
    [
        (cases([0, 0, 1, 1]), BINARY, 5, "5 folds"),
        (cases([0] * 8, 1), BINARY, 2, "class y"),
        (cases([3.0] * 8, 1), AGE, 2, r"target 3\.0"),
        (cases([0, 1] * 5, 1, split="test"), BINARY, 2, "training cases"),
        (cases([0] * 9 + [1], 1), BINARY, 5, "class y"),
    ],
)
def test_impossible_folds(everyone, spec, count, told):
    with pytest.raises(UserError, match=told):
        make_folds(everyone, spec, count)
