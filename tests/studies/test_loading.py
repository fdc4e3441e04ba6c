"""Studies as files: strict, with sentences; every shipped one names recipes and settings that are there."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.data.catalogue import write_catalogue
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_catalogue
from viewalign.data.readers.itk import sitk
from viewalign.data.settings import PrepareSettings
from viewalign.errors import UserError
from viewalign.recipes.files import STUDIES
from viewalign.studies.labelled import (
    Labelled,
    LabelledCase,
    first_existing,
    in_folders,
    in_table,
    matching,
    prepared_store,
    read_labelled,
)
from viewalign.studies.loading import load
from viewalign.studies.settings import DataSettings, LabelledSettings, StudyOptions
from viewalign.tasks.manifest import TaskCase, write_manifest
from viewalign.tasks.spec import ChannelSpec, TaskSpec, write_spec
from viewalign.utils.settings import read_words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data of every shipped study: made-up images under the names of the real ones, a store, a table, and tasks."""
    tmp_path = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    lines = ["case,image,labels,split"]
    hippocampi = [f"hippocampus_{k:03d}.nii.gz" for k in [*range(1, 11), 101, 201, 250, 251, 310]]
    atria = [f"la_{k:03d}.nii.gz" for k in [*range(1, 11), 30, 31, 60, *range(81, 91)]]
    cine = {k: [f"cine_{k:03d}_{phase}.nii.gz" for phase in ("ed", "es")] for k in [*range(1, 11), 13, 14]}
    for name in [*hippocampi, *atria, *(name for both in cine.values() for name in both)]:
        array = rng.normal(size=(16, 16, 16)).astype(np.float32)
        for part, one in (("images", array), ("labels", (array > 1).astype(np.uint8))):
            sitk.WriteImage(sitk.GetImageFromArray(one), str(tmp_path / part / name))
        lines.append(f"{name[:-7]},images/{name},labels/{name},{'test' if '_2' in name or '_3' in name else 'learn'}")
    (tmp_path / "labelled.csv").write_text("\n".join(lines) + "\n")
    phases = (ChannelSpec(name="ed"), ChannelSpec(name="es"))
    for kind, folder in (("multiclass", "group"), ("regression", "ejection")):
        spec = TaskSpec(name=folder, kind=kind, channels=phases, classes=("a", "b", "c") if folder == "group" else ())
        cases = []
        for k, both in cine.items():
            images = {phase.name: tmp_path / "images" / name for phase, name in zip(phases, both, strict=True)}
            cases.append(TaskCase(f"c{k}", f"c{k}", images, target=k % 3, split="test" if k > 10 else "train"))
        write_spec(spec, tmp_path / "tasks" / folder)
        write_manifest(cases, spec, tmp_path / "tasks" / folder)
    settings = PrepareSettings(spacing=(1.0, 1.0, 1.0))
    found = index_sources([str(tmp_path / "images" / "hippocampus_0*")])
    write_catalogue(found.collection, tmp_path / "catalogue.json")
    prepare_catalogue(tmp_path / "catalogue.json", tmp_path / "store", settings)
    return tmp_path


SHORT = {"ablation-primus-laptop", "methods-resenc-laptop", "organs-cine-laptop", "geometry-one-gpu"}
"""Studies that the short suite begins; the long one begins all."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SHORT else [pytest.mark.long]) for n in STUDIES.names()]
)
def test_every_shipped_study_can_be_begun(name, data):
    """It is laid out on data of its kind, as `--dry-run` does: recipes, settings and evaluations are checked."""
    pytest.importorskip("nnunetv2")
    result = CliRunner().invoke(app, ["study", name, str(data), "-o", str(data / "out"), "--dry-run"])
    assert result.exit_code == 0, (name, result.output, result.exception)
    study = load(name)
    pretrained = {(arm, study.pretraining_seed(arm, seed)) for arm in study.arms for seed in study.seeds}
    evaluated = len(study.arms) * len(study.seeds) * len(study.evaluations)
    assert result.output.count("to do") == len(pretrained) + evaluated
    assert study.name == name
    assert not STUDIES.headline(name).startswith("base")
    assert not (data / "out").exists(), "a dry run writes nothing"


def test_sizes_and_rows():
    rows = {"mae", "ae", "mae-cva", "mae-ccva", "mae-con", "mae-cva-con", "mae-ccva-con"}
    for network in ("resenc", "primus"):
        for size in ("laptop", "one-gpu", "paper"):
            study = load(f"ablation-{network}-{size}")
            controls = {"untrained", "mae-on"} if size == "laptop" else {"untrained", "mae-on", "mae-pairs"}
            assert set(study.arms) == rows | controls
            assert study.against == "mae-on", "the MAE that rows start from has fewer steps than they"
            assert {study.chain(arm)[-1] for arm in study.arms} == {"mae", "untrained"}
            assert all(arm.recipe.split("-")[-2] == network for arm in study.arms.values())
    for size in ("laptop", "one-gpu", "paper"):
        assert {"released", "exact", "independent"} < set(load(f"geometry-{size}").arms)
    assert load("geometry-one-gpu").evaluations["tuned"].settings["epochs"] == 50
    listed = CliRunner().invoke(app, ["study", "--list"]).output
    assert all(name in listed for name in STUDIES.names())
    assert "_folders" not in listed


def test_overrides_reach_every_depth_and_null_leaves_out():
    study = load(
        "geometry-laptop", read_words(["seeds=4,7", "evaluations.voxels.shots=5", "arms.mae=null", "common.batch=4"])
    )
    assert study.seeds == (4, 7)
    assert study.evaluations["voxels"].shots == 5
    assert "mae" not in study.arms
    assert study.common["batch"] == 4
    assert study.common["views"] == {"patch_size": [24, 32, 32]}


def test_settings_of_segmentation_are_overridden_by_evaluations_and_these_by_arms():
    changes = {"arms": {"mae": {"finetune": {"lr": 0.1}}}, "evaluations": {"tuned5": {"settings": {"lr": 0.2}}}}
    study = load("organs-cine-laptop", {"segmentation": {"epochs": 7}} | changes)
    for name, arm, rate in (("tuned5", "mae", 0.1), ("tuned5", "cva", 0.2), ("tuned10", "cva", 3e-3)):
        settings = study.evaluation(name, arm).settings
        assert (settings["epochs"], settings["lr"], settings["patch_size"]) == (7, rate, [16, 64, 64])
    assert study.evaluation("voxels", "mae") == study.evaluations["voxels"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluations.voxels.shot=5", "evaluations.voxels.shot.*'shots'"),
        ("sedes=3", "'seeds'"),
        ("reference=exakt", "'exact'"),
        ("arms.exact.start=maee", "'mae'"),
        ("arms.exact.start=exact", "circle"),
        ("arms.exact.start=untrained", "not trained"),
        ("data.labelled=null", "evaluations.voxels"),
        ("data.store=x", "`store`"),
        ("seeds=[1,1]", "seeds"),
        ("steps=0", "steps"),
        ("name=../x", "name"),
        ("common.seed=7", "common.seed.*seeds"),
        ("common.runtime.precision=bf16", "common.runtime.precision.*precision"),
        ("common.steps=7", "common.steps"),
        ("arms.exact.settings.out=x", "arms.exact.settings.out"),
        ("segmentation.epocs=3", "segmentation.*null"),
        ("arms.exact.finetune.lr=1", "arms.exact.finetune.*null"),
    ],
)
def test_what_does_not_fit_is_a_sentence(override, said):
    with pytest.raises(UserError, match=said):
        load("geometry-laptop", read_words([override]))


def test_an_unknown_study_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'geometry-laptop'"):
        load("geometry-labtop")


def test_a_file_s_root_is_its_folder(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: geometry-laptop\nname: mine\ndata: {root: there}\n")
    assert load(str(tmp_path / "mine.yaml")).data.root == str(tmp_path / "there")


def test_a_recipe_of_an_arm_is_relative_to_the_study_s_file(tmp_path, monkeypatch):
    (tmp_path / "own.yaml").write_text("base: mae-resenc-xs\n")
    arms = "{own: {recipe: own.yaml}, mae: {recipe: mae-resenc-xs}}"
    (tmp_path / "mine.yaml").write_text(f"base: geometry-laptop\nname: mine\narms: {arms}\n")
    monkeypatch.chdir("/")
    arms = load(str(tmp_path / "mine.yaml")).arms
    assert (arms["own"].recipe, arms["mae"].recipe) == (str(tmp_path / "own.yaml"), "mae-resenc-xs")


def test_initial_weights_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch):
    for name in ("w.pth", "v.pth"):
        (tmp_path / name).touch()
    arms = (
        "{own: {recipe: mae-resenc-xs, settings: {init: w.pth}}, named: {recipe: mae-resenc-xs, settings: {init: x}}}"
    )
    text = f"base: geometry-laptop\nname: mine\narms: {arms}\ncommon: {{init.weights: v.pth}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "more.yaml").write_text("common: {init: w.pth}\n")
    monkeypatch.chdir("/")
    study = load(str(tmp_path / "mine.yaml"))
    assert study.arms["own"].settings == {"init": str(tmp_path / "w.pth")}
    assert study.arms["named"].settings == {"init": "x"}
    assert study.common["init"] == {"weights": str(tmp_path / "v.pth")}
    words = read_words([f"config={tmp_path / 'more.yaml'}"], StudyOptions)
    assert words["common"]["init"] == str(tmp_path / "w.pth")


def test_a_base_s_settings_of_fine_tunings_may_be_unused(tmp_path):
    gone = ["evaluations.tuned5=null", "evaluations.tuned10=null"]
    assert load("organs-atrium-laptop", read_words(gone)).segmentation
    file = tmp_path / "mine.yaml"
    file.write_text("base: geometry-laptop\nname: mine\nsegmentation: {epocs: 3}\n")
    with pytest.raises(UserError, match="segmentation=null"):
        load(str(file))
    assert load(str(file), read_words(["segmentation=null"])).segmentation == {}


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
    assert [case.name for case in matching(found, ["case_0[12]"], "learn")] == ["case_01", "case_02"]
    with pytest.raises(UserError, match="liver"):
        matching(found, ["liver"], "learn")


def test_a_folder_of_several_channels_is_an_error(tmp_path):
    cases(tmp_path, 2)
    (tmp_path / "images" / "case_01_0001.nii.gz").touch()
    with pytest.raises(UserError, match="several channels of case_01"):
        in_folders(tmp_path / "images", tmp_path / "labels")


def test_images_below_a_folder_are_a_part_of_the_data(tmp_path):
    def store():
        source = {"folder": "images", "prepare": {"spacing": 1}}
        return prepared_store(DataSettings.model_validate({"source": source}), tmp_path, tmp_path / "out", False)

    cases(tmp_path, 2)
    before = store()
    assert store() == before
    (tmp_path / "images" / "site").mkdir()
    (tmp_path / "images" / "site" / "c.nii.gz").write_bytes(b"x")
    assert store() != before


def test_shots_are_spread_or_drawn_and_never_more_than_there_are(tmp_path):
    found = tuple(cases(tmp_path, 9))
    labelled = Labelled(found, (), {})
    assert [case.name for case in labelled.shots(3, "spread", 0)] == ["case_00", "case_04", "case_08"]
    drawn = [labelled.shots(3, "seed", seed) for seed in range(6)]
    assert drawn[0] == labelled.shots(3, "seed", 0)
    assert len(set(drawn)) > 1
    assert labelled.shots(None, "seed", 0) == found
    with pytest.raises(UserError, match="shots=10"):
        labelled.shots(10, "spread", 0)


def test_a_table_names_files_and_splits(tmp_path):
    cases(tmp_path, 2)
    row = "a,images/case_00_0000.nii.gz,labels/case_00.nii.gz,learn\n"
    (tmp_path / "t.csv").write_text("case,image,labels,split\n" + row)
    found, split = in_table(tmp_path / "t.csv")
    assert found == [LabelledCase("a", tmp_path / "images/case_00_0000.nii.gz", tmp_path / "labels/case_00.nii.gz")]
    assert split == {"a": "learn"}
    (tmp_path / "t.csv").write_text("case,image,labels\na,gone.nii.gz,labels/case_00.nii.gz\n")
    with pytest.raises(UserError, match=r"gone\.nii\.gz"):
        in_table(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"nothing.*neither"):
        first_existing(tmp_path, "nothing|neither")


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
    (tmp_path / "dataset.json").write_text(json.dumps({**told, "labels": {**told["labels"], "ignore": 3}}))
    with pytest.raises(UserError, match="ignore label"):
        read_labelled(asked, tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({**told, "labels": {"background": 0, "whole": [1, 2]}}))
    with pytest.raises(UserError, match="'whole'"):
        read_labelled(asked, tmp_path)


def test_a_table_s_split_selects_training_cases(tmp_path):
    cases(tmp_path, 3)
    lines = ["case,image,labels,split"]
    lines += [f"c{k},images/case_0{k}_0000.nii.gz,labels/case_0{k}.nii.gz,{'test' if k else 'learn'}" for k in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    found = read_labelled(LabelledSettings(manifest="t.csv"), tmp_path)
    assert ([c.name for c in found.learn], [c.name for c in found.test]) == (["c0"], ["c1", "c2"])
    with pytest.raises(UserError, match="c1"):
        read_labelled(LabelledSettings(manifest="t.csv", learn=("c[01]",)), tmp_path)
    (tmp_path / "t.csv").write_text("\n".join(lines).replace("learn", "Learn"))
    assert len(read_labelled(LabelledSettings(manifest="t.csv"), tmp_path).learn) == 1
    (tmp_path / "t.csv").write_text("\n".join(lines).replace("test", "val", 1))
    with pytest.raises(UserError, match="'val'"):
        read_labelled(LabelledSettings(manifest="t.csv"), tmp_path)
    (tmp_path / "t.csv").write_text("\n".join(lines).replace("c2,", "c1,"))
    with pytest.raises(UserError, match="several rows of the case c1"):
        read_labelled(LabelledSettings(manifest="t.csv"), tmp_path)
    (tmp_path / "t.csv").write_text("\n".join(lines).replace(",learn", ",").replace(",test", ","))
    with pytest.raises(UserError, match=r"learn|test"):
        read_labelled(LabelledSettings(manifest="t.csv"), tmp_path)


def test_studies_that_are_based_on_each_other_are_an_error(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"base: {two}\n")
    two.write_text(f"base: {one}\n")
    with pytest.raises(UserError, match=r"one\.yaml → .*two\.yaml → .*one\.yaml"):
        load(str(one))
