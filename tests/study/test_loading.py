"""Studies as files: strict, with sentences; every shipped one names recipes and settings that are there."""

import json

import pytest

from viewalign.errors import UserError
from viewalign.recipes.loading import load as load_recipe
from viewalign.study.labelled import Labelled, LabelledCase, first_there, in_folders, in_table, matching, read_labelled
from viewalign.study.loading import flatten, headline, load, names
from viewalign.study.settings import LabelledSettings


@pytest.mark.parametrize("name", names())
def test_a_shipped_study_s_arms_are_recipes_with_known_settings(name):
    study = load(name)
    assert headline(name)
    assert study.name == name
    for arm in study.arms.values():
        recipe = load_recipe(arm.recipe, [*flatten(study.common), *flatten(arm.settings)])
        assert recipe.views.size == (24, 32, 32)


def test_overrides_reach_every_depth_and_null_leaves_out():
    study = load("geometry-laptop", ["seeds=[4,7]", "judges.voxels.shots=5", "arms.mae=null", "common.batch=4"])
    assert study.seeds == (4, 7)
    assert study.judges["voxels"].shots == 5
    assert "mae" not in study.arms
    assert study.common["batch"] == 4
    assert study.common["views"] == {"size": [24, 32, 32]}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("judges.voxels.shot=5", "judges.voxels.shot.*did you mean 'shots'"),
        ("sedes=3", "did you mean 'seeds'"),
        ("reference=exakt", "did you mean 'exact'"),
        ("arms.exact.start=maee", "did you mean 'mae'"),
        ("arms.exact.start=exact", "circle"),
        ("data.labelled=null", "judges.voxels needs labelled images"),
        ("data.store=x", "either `store`"),
        ("seeds=[1,1]", "different numbers"),
        ("steps=0", "steps"),
        ("name=../x", "names a folder"),
    ],
)
def test_what_does_not_fit_is_a_sentence(override, said):
    with pytest.raises(UserError, match=said):
        load("geometry-laptop", [override])


def test_an_unknown_study_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'geometry-laptop'"):
        load("geometry-labtop")


def test_a_file_s_root_is_its_folder(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: geometry-laptop\nname: mine\ndata: {root: there}\n")
    assert load(str(tmp_path / "mine.yaml")).data.root == str(tmp_path / "there")


def cases(folder, count):
    for part in ("images", "labels"):
        (folder / part).mkdir()
        for k in range(count):
            ending = "_0000.nii.gz" if part == "images" else ".nii.gz"
            (folder / part / f"case_{k:02d}{ending}").write_bytes(b"x" * (k + 1))
    return in_folders(folder / "images", folder / "labels")


def test_images_find_their_labels_and_patterns_their_cases(tmp_path):
    found = cases(tmp_path, 6)
    assert [case.name for case in found] == [f"case_{k:02d}" for k in range(6)]
    assert found[2].identity == ["case_02", 3, 3]
    assert [case.name for case in matching(found, ["case_0[12]"], "learn")] == ["case_01", "case_02"]
    with pytest.raises(UserError, match="no case is called liver"):
        matching(found, ["liver"], "learn")


def test_shots_are_spread_or_drawn_and_never_more_than_there_are(tmp_path):
    found = tuple(cases(tmp_path, 9))
    labelled = Labelled(found, (), {})
    assert [case.name for case in labelled.shots(3, "spread", 0)] == ["case_00", "case_04", "case_08"]
    drawn = [labelled.shots(3, "seed", seed) for seed in range(6)]
    assert drawn[0] == labelled.shots(3, "seed", 0)
    assert len(set(drawn)) > 1
    assert labelled.shots(None, "seed", 0) == found
    with pytest.raises(UserError, match="10 shots are asked for"):
        labelled.shots(10, "spread", 0)


def test_a_table_names_files_and_splits(tmp_path):
    cases(tmp_path, 2)
    row = "a,images/case_00_0000.nii.gz,labels/case_00.nii.gz,learn\n"
    (tmp_path / "t.csv").write_text("case,image,labels,split\n" + row)
    found, split = in_table(tmp_path / "t.csv")
    assert found == [LabelledCase("a", tmp_path / "images/case_00_0000.nii.gz", tmp_path / "labels/case_00.nii.gz")]
    assert split == {"a": "learn"}
    (tmp_path / "t.csv").write_text("case,image,labels\na,gone.nii.gz,labels/case_00.nii.gz\n")
    with pytest.raises(UserError, match="which is not there"):
        in_table(tmp_path / "t.csv")
    with pytest.raises(UserError, match="Give --data"):
        first_there(tmp_path, "nothing|neither")


def test_a_dataset_of_nnunet_brings_its_classes(tmp_path):
    cases(tmp_path, 3)
    for old, new in (("images", "imagesTr"), ("labels", "labelsTr")):
        (tmp_path / old).rename(tmp_path / new)
    told = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "tumour": 2}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    asked = LabelledSettings(dataset=".", learn=("case_00",), test=("case_0[12]",))
    found = read_labelled(asked, tmp_path)
    assert found.classes == {"tumour": 2}
    assert [case.name for case in found.test] == ["case_01", "case_02"]
    assert found.learn[0].image == tmp_path / "imagesTr" / "case_00_0000.nii.gz"
    (tmp_path / "dataset.json").write_text(json.dumps({**told, "labels": {"background": 0, "whole": [1, 2]}}))
    with pytest.raises(UserError, match="region 'whole'"):
        read_labelled(asked, tmp_path)


def test_a_table_s_split_tells_who_learns(tmp_path):
    cases(tmp_path, 3)
    lines = ["case,image,labels,split"]
    lines += [f"c{k},images/case_0{k}_0000.nii.gz,labels/case_0{k}.nii.gz,{'test' if k else 'learn'}" for k in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    found = read_labelled(LabelledSettings(manifest="t.csv"), tmp_path)
    assert ([c.name for c in found.learn], [c.name for c in found.test]) == (["c0"], ["c1", "c2"])
    with pytest.raises(UserError, match="not both c1"):
        read_labelled(LabelledSettings(manifest="t.csv", learn=("c[01]",)), tmp_path)
    (tmp_path / "t.csv").write_text("\n".join(lines).replace(",learn", ",").replace(",test", ","))
    with pytest.raises(UserError, match="who learns"):
        read_labelled(LabelledSettings(manifest="t.csv"), tmp_path)
