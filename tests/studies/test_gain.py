"""The plan of `gain`: arms, evaluations and split, from few arguments."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from smooth_images import write_images
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.data.readers.itk import sitk
from viewalign.data.store import store_from_arrays
from viewalign.errors import UserError
from viewalign.reports.study import write_page
from viewalign.studies import gain
from viewalign.studies.cells import Grid
from viewalign.studies.gain_cost import estimate_seconds
from viewalign.studies.gain_rates import RateChoice
from viewalign.tasks.manifest import TaskCase, read_manifest, write_manifest
from viewalign.tasks.spec import TaskSpec, read_spec, write_spec
from viewalign.utils.io import write_json

from .conftest import COMMON

QUICK = {"steps": 2, "shots": [2], "seeds": 2, "pretrain": COMMON, "threads": 1, "device": "cpu"}


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    store_from_arrays(tmp_path / "store", {f"s{k}": rng.normal(size=(18, 18, 18)).astype(np.float32) for k in range(4)})
    return tmp_path / "store"


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.fixture
def dataset(tmp_path):
    folder, rng = tmp_path / "raw" / "Dataset007_Made", np.random.default_rng(0)
    for k in range(10):
        image = rng.normal(size=(18, 18, 18)).astype(np.float32) + 5
        write_image(folder / "imagesTr" / f"c{k}_0000.nii.gz", image)
        write_image(folder / "labelsTr" / f"c{k}.nii.gz", (image > 5).astype(np.uint8))
    labels = {"background": 0, "tumour": 1}
    write_json(
        folder / "dataset.json",
        {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 10, "file_ending": ".nii.gz"},
    )
    return folder


@pytest.fixture
def task(tmp_path):
    rng, folder, cases = np.random.default_rng(0), tmp_path / "task", []
    spec = TaskSpec.model_validate(
        {"name": "sex", "kind": "binary", "classes": ["f", "m"], "channels": [{"name": "t1"}]}
    )
    for k in range(30):
        image = rng.normal(size=(16, 16, 16)).astype(np.float32) + 5
        image[:, :, 8:] *= 1 + k % 2
        write_image(folder / "images" / f"c{k:02d}.nii.gz", image)
        path = folder / "images" / f"c{k:02d}.nii.gz"
        cases.append(TaskCase(f"c{k:02d}", f"s{k:02d}", {"t1": path}, target=k % 2))
    write_spec(spec, folder)
    write_manifest(cases, spec, folder)
    return folder


def test_the_plan_of_a_segmentation(store, dataset, tmp_path):
    pytest.importorskip("nnunetv2")
    plan = viewalign.gain(store, dataset, tmp_path / "gain", **QUICK)
    study = plan.study
    assert list(study.arms) == ["scratch", "pretrained"]
    assert list(study.evaluations) == ["tuned-2", "tuned-all", "frozen-2"]
    tuned = study.evaluations["tuned-2"].settings
    assert {study.evaluations["tuned-all"].settings["spacing"], tuned["spacing"]} == {"dataset"}, "one plan for all"
    assert len(study.data.labelled.test) == 5
    assert not set(study.data.labelled.test) & set(study.data.labelled.learn)
    names = list(plan.cells())
    assert [name for name in names if name.startswith("pretrain/pretrained")] == ["pretrain/pretrained/0"], "once"
    assert len(names) == 1 + 2 + 3 * 2 * 2
    assert viewalign.gain(store, dataset, tmp_path / "gain", **QUICK).study == study, "the same split again"


@pytest.mark.slow
def test_a_plan_of_a_task_splits_and_samples_its_cases(store, task, tmp_path):
    plan = viewalign.gain(store, task, tmp_path / "gain", **QUICK)
    assert list(plan.study.evaluations) == ["tuned-2", "tuned-all", "frozen-2"]
    own = Path(plan.study.evaluations["tuned-2"].task)
    assert own.parent == tmp_path / "gain"
    cases = read_manifest(own, read_spec(own))
    assert sum(case.split == "test" for case in cases) == 6
    assert {case.target for case in cases if case.split == "test"} == {0, 1}


def test_another_call_keeps_the_task_of_a_running_one(store, task, tmp_path):
    running = viewalign.gain(store, task, tmp_path / "gain", **QUICK)
    own = Path(running.study.evaluations["tuned-2"].task)
    before = (own / "manifest.csv").read_text()
    other = viewalign.gain(store, task, tmp_path / "gain", **QUICK, test=["c0?"])
    assert Path(other.study.evaluations["tuned-2"].task) != own
    assert (own / "manifest.csv").read_text() == before
    assert viewalign.gain(store, task, tmp_path / "gain", **QUICK).study == running.study


@pytest.mark.parametrize(("count", "test"), [(10, 5), (12, 6), (20, 5), (24, 6), (30, 6), (100, 20)])
def test_a_fifth_of_a_task_s_subjects_at_least_five_are_tested(tmp_path, monkeypatch, count, test):
    monkeypatch.setattr(gain, "read_fingerprints", lambda *_: {})
    monkeypatch.setattr(gain, "join_copies", lambda cases, _: cases)
    spec = TaskSpec.model_validate({"name": "age", "kind": "regression", "channels": [{"name": "t1"}]})
    cases = [TaskCase(f"c{k}", f"s{k}", {"t1": tmp_path}, target=float(k)) for k in range(count)]
    found = gain.split_task(cases, spec, [], tmp_path)
    assert sum(case.split == "test" for case in found) == test


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "words"), [(None, "published"), ("2e-3", "0.002")])
def test_the_learning_rate_is_named_on_the_page(store, dataset, tmp_path, rate, words):
    pytest.importorskip("nnunetv2")
    plan = viewalign.gain(store, dataset, tmp_path / "gain", **QUICK, finetune={"lr": rate})
    assert words in plan.result()["about"]["Learning rate"]


@pytest.mark.slow
def test_a_primus_that_a_setting_chooses_has_the_rate_of_a_primus(store, task, tmp_path):
    own = {**COMMON, "network": {"name": "primus-xs"}, "views": {"patch_size": [16, 16, 16]}}
    plan = viewalign.gain(store, task, tmp_path / "gain", **{**QUICK, "pretrain": own}, recipe="cva-resenc-xs")
    assert plan.study.evaluations["tuned-2"].settings["lr"] == 3e-4


def test_copies_of_a_test_image_are_no_training_cases(tmp_path, caplog):
    images = write_images(tmp_path / "plain")
    learn, test = gain.split_segmentation(images, tmp_path / "gain", [])
    assert (len(learn), len(test)) == (5, 5)
    first, other = (int(names[0].removeprefix("case_")) for names in (test, learn))
    copies = write_images(tmp_path / "copies", [(first, other)])
    assert gain.split_segmentation(copies, tmp_path / "again", []) == (learn[1:], sorted([*test, learn[0]]))
    caplog.clear()
    assert gain.split_segmentation(copies, tmp_path / "again", test) == (learn, test)
    assert "Training and test cases contain copies" in caplog.text


def test_visits_of_a_patient_stay_together(tmp_path, caplog):
    files = list(write_images(tmp_path, count=12).values())
    visits = [f"patient{patient:02d}_frame{visit:02d}" for patient in range(1, 7) for visit in (1, 12)]
    own = dict(zip(visits, files, strict=True))
    learn, test = gain.split_segmentation(own, tmp_path / "gain", [], r"(patient\d+)")
    assert (len(learn), len(test)) == (2, 10), "five of six patients"
    assert not {name[:9] for name in learn} & {name[:9] for name in test}
    assert "patient=" not in caplog.text
    named = gain.split_segmentation(own, tmp_path / "gain", ["patient0[1-5]_frame12"], r"(patient\d+)")
    assert named == (visits[10:], visits[1:10:2]), "other visits of tested patients are in neither part"
    gain.split_segmentation(own, tmp_path / "gain", [])
    assert "start with patient" in caplog.text
    caplog.clear()
    for names in ([f"la_{k:03d}" for k in range(12)], [f"site{1 + k % 2}_{k:03d}" for k in range(12)]):
        gain.split_segmentation(dict(zip(names, files, strict=True)), tmp_path / "gain", [])
    assert "patient=" not in caplog.text


def test_a_gain_by_patients(store, tmp_path):
    pytest.importorskip("nnunetv2")
    rng, folder = np.random.default_rng(0), tmp_path / "raw" / "Dataset008_Visits"
    for k in range(18):
        image = rng.normal(size=(18, 18, 18)).astype(np.float32) + 5
        write_image(folder / "imagesTr" / f"p{k // 2}_v{k % 2}_0000.nii.gz", image)
        write_image(folder / "labelsTr" / f"p{k // 2}_v{k % 2}.nii.gz", (image > 5).astype(np.uint8))
    described = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {**described, "numTraining": 18})
    plan = viewalign.gain(store, folder, tmp_path / "gain", **{**QUICK, "shots": [2, 5]}, patient=r"(p\d)_")
    assert list(plan.study.evaluations) == ["tuned-2", "tuned-all", "frozen-2"], "four patients are left to train on"
    grid = Grid(plan.study, plan.folder)
    assert (len(grid.labelled.learn), len(grid.labelled.test)) == (8, 10)
    record(grid, 0.1)
    found = {one["evaluation"]: one for one in plan.result()["comparisons"]}
    assert found["tuned-2"]["labelled"] == "with 2 labelled patients"
    assert found["tuned-2"]["difference"]["cases"] == 5


@pytest.mark.slow
def test_a_finished_encoder_replaces_the_pretraining(store, task, tmp_path):
    own = {**QUICK, "pretrain": {**COMMON, "network": {"name": "resenc-xs"}}}  # the smallest that a recipe names
    recipe = viewalign.gain(store, task, tmp_path / "other", **own).study
    grid = Grid(recipe, tmp_path / "other")
    from viewalign.finetuning.segmentation.encoders import write_untrained

    file = write_untrained(grid.recipes["pretrained", 0], grid.evaluator.preparation, tmp_path / "encoder.pth")
    plan = viewalign.gain(store, task, tmp_path / "gain", encoder=str(file), public=str(file), shots=[2], seeds=2)
    arms = plan.study.arms
    assert arms["pretrained"].encoder == arms["public"].encoder == str(file)
    assert arms["scratch"].recipe == "mae-resenc-xs"
    assert arms["scratch"].settings["views"]["patch_size"] == [16, 16, 16]
    assert [name for name in plan.cells() if name.startswith("pretrain/")].count("pretrain/public/0") == 1
    before = Grid(plan.study, plan.folder).cells[0].folder
    state = torch.load(file, weights_only=True)
    name = next(k for k in state["network_weights"] if k.startswith("encoder"))
    state["network_weights"][name] += 1
    torch.save(state, file)
    after = {cell.name: cell.folder for cell in Grid(plan.study, plan.folder).cells}
    assert after["pretrain/pretrained/0"] != {c.name: c.folder for c in [Grid(plan.study, plan.folder).cells[0]]}
    assert before.parent == after[Grid(plan.study, plan.folder).cells[0].name].parent


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shots": [2], "seedz": 3}, "'seedz'.*'seeds'"),
        ({"recipe": "cva-resenc-xxl"}, "cva-resenc-xxl"),
        ({"test": ["nothing*"]}, "nothing"),
        ({"test": ["c0?", "c1*", "c2*"]}, "0 training and 30 test"),
        ({"encoder": "nowhere"}, "nowhere"),
        ({"encoder": "nowhere", "steps": 5, "pretrain": {"batch": 2}}, "encoder.*pretrain and steps"),
        ({"patient": "(c)"}, "subject"),
    ],
)
def test_invalid_settings_are_errors_before_anything_runs(store, task, tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        viewalign.gain(store, task, tmp_path / "gain", **settings)


def test_labelled_data_that_do_not_exist(store, tmp_path):
    pytest.importorskip("nnunetv2")
    with pytest.raises(UserError, match="Dataset999_No"):
        viewalign.gain(store, "Dataset999_No", tmp_path / "gain")


def record(grid, gain, missing=()):
    """Write results as if all cells had run: pretrained is better by `gain` in every case."""
    for cell in grid.cells:
        if cell.name in missing:
            continue
        cell.folder.mkdir(parents=True, exist_ok=True)
        result = {"measures": {}}
        if cell.evaluation:
            better = gain if cell.arm == "pretrained" and cell.evaluation.startswith("tuned-2") else 0.0
            rng = np.random.default_rng([cell.seed, len(cell.evaluation), cell.arm == "pretrained"])
            cases = {case.name: {"dice": 0.5 + better + rng.normal(0, 0.01)} for case in grid.labelled.test}
            result = {"measures": {"dice": float(np.mean([c["dice"] for c in cases.values()]))}, "cases": cases}
        write_json(cell.folder / "cell.json", {"status": "done", "seconds": 60.0, **result})


def test_stored_results_become_the_sentence_and_the_page(store, dataset, tmp_path):
    pytest.importorskip("nnunetv2")
    plan = viewalign.gain(store, dataset, tmp_path / "gain", **{**QUICK, "seeds": 3})
    grid = Grid(plan.study, plan.folder)
    record(grid, 0.1)
    assert plan.run() == 0
    headline = plan.result()["headline"]
    assert headline.startswith("Pretraining helped with 2 labelled cases: +0.098 ")
    assert "No gain could be shown with all 5, and none can be excluded:" in headline
    assert headline.endswith(f" It took {len(grid.cells)} minutes.")
    page = (plan.folder / "report.html").read_text()
    assert headline in page
    assert "cva, resenc" in page
    assert "training cases, " in page
    assert "scratch\\u003cbr>fine-tuned, 2 labelled cases" in page
    table = json.loads((plan.folder / "table.json").read_text())
    assert [one["better"] for one in table["summary"]["comparisons"]] == [True, None, None]
    assert write_page(plan.folder).is_file(), "the page is written again from its table"
    del table["summary"]["rates"]  # as in tables of earlier versions
    write_json(plan.folder / "table.json", table)
    assert headline in write_page(plan.folder).read_text()


@pytest.fixture
def larger(dataset):
    """The dataset with 17 cases, of which 12 are training cases."""
    rng = np.random.default_rng(1)
    for k in range(10, 17):
        image = rng.normal(size=(18, 18, 18)).astype(np.float32) + 5
        write_image(dataset / "imagesTr" / f"c{k}_0000.nii.gz", image)
        write_image(dataset / "labelsTr" / f"c{k}.nii.gz", (image > 5).astype(np.uint8))
    values = json.loads((dataset / "dataset.json").read_text())
    write_json(dataset / "dataset.json", {**values, "numTraining": 17})
    return dataset


def test_rates_are_tried_on_training_cases(store, larger, tmp_path):
    pytest.importorskip("nnunetv2")
    plan = viewalign.gain(store, larger, tmp_path / "gain", **{**QUICK, "shots": [10]}, rates="1e-3,1e-2")
    cases, final = plan.rates.data.labelled, plan.study.data.labelled
    assert sorted([*cases.learn, *cases.test]) == sorted(final.learn)
    assert not {*cases.learn, *cases.test} & {*final.test}
    assert [e.shots for e in plan.rates.evaluations.values()] == [None, None], "10 are not left"
    names = list(plan.cells())
    assert names.count("pretrain/pretrained/0") == 1
    tried = [name for name in names if name.startswith("evaluate/rate")]
    assert tried == [f"evaluate/rate-{rate}/{arm}/0" for rate in ("0.001", "0.01") for arm in ("scratch", "pretrained")]
    wanted = [name for name in plan.cells("evaluate/tuned-all/scratch/*") if name.startswith("evaluate/")]
    assert wanted == [*tried, "evaluate/tuned-all/scratch/0", "evaluate/tuned-all/scratch/1"]


def test_each_encoder_is_compared_at_its_own_rate(store, larger, tmp_path):
    pytest.importorskip("nnunetv2")
    plan = viewalign.gain(store, larger, tmp_path / "gain", **QUICK, rates=[1e-3, 1e-2])
    found = {("rate-0.001", "scratch"): 0.5, ("rate-0.01", "scratch"): 0.6}
    found |= {("rate-0.001", "pretrained"): 0.7, ("rate-0.01", "pretrained"): 0.65}
    assert "headline" in plan.result()
    for grid in plan._grids():
        if grid.study.name == "gain-rates":
            record(grid, 0.0)
            for cell in grid.cells[2:]:
                dice = found[cell.evaluation, cell.arm]
                write_json(cell.folder / "cell.json", {"status": "done", "measures": {"dice": dice}, "seconds": 60.0})
        else:
            tuned = grid
            record(grid, 0.1)
    rates = {arm: tuned.study.evaluation("tuned-2", arm).settings["lr"] for arm in tuned.study.arms}
    assert rates == {"scratch": 0.01, "pretrained": 0.001}
    assert plan.run() == 0
    result = plan.result()
    assert result["about"]["Learning rate"] == "scratch 0.01, pretrained 0.001"
    assert result["cost"] == f"{len(set(plan.cells()))} minutes"
    page = (plan.folder / "report.html").read_text()
    assert '<td class="number">0.650</td><td><strong>0.001</strong>, the lowest' in page


def test_fine_tunings_at_other_rates_are_not_compared(store, larger, tmp_path):
    pytest.importorskip("nnunetv2")
    plain = viewalign.gain(store, larger, tmp_path / "gain", **QUICK)
    record(Grid(plain.study, plain.folder), 0.1)
    assert plain.result()["comparisons"]
    assert not viewalign.gain(store, larger, tmp_path / "gain", **QUICK, rates=[1e-3]).result()["comparisons"]


def test_rates_that_cannot_be_chosen(store, dataset, tmp_path):
    pytest.importorskip("nnunetv2")
    with pytest.raises(UserError, match=r"0 training cases would be left.*5 held out"):
        viewalign.gain(store, dataset, tmp_path / "gain", **QUICK, rates=[1e-3, 1e-2])
    with pytest.raises(UserError, match=r"either rates.*or finetune\.lr"):
        viewalign.gain(store, dataset, tmp_path / "gain", **QUICK, rates=[1e-3], finetune={"lr": 0.1})


@pytest.mark.parametrize(
    ("measure", "values", "rate"),
    [
        ("dice", {0.1: 0.5, 0.01: 0.6, 0.001: 0.4}, 0.01),
        ("dice", {0.1: 0.6, 0.01: 0.6}, 0.01),
        ("mae", {0.1: 3.0, 0.01: 2.0}, 0.01),
        ("mae", {0.1: math.nan, 0.01: 2.0, 0.001: math.nan}, 0.01),
    ],
)
def test_the_best_rate_is_the_lowest_of_equal_ones(measure, values, rate):
    assert RateChoice("scratch", measure, values).rate == rate


@pytest.mark.slow
def test_the_estimate_counts_unfinished_cells(store, dataset, tmp_path, monkeypatch):
    pytest.importorskip("nnunetv2")
    from viewalign.studies import gain_cost

    monkeypatch.setattr(gain_cost, "seconds_per_step", lambda *_: (2.0, "made"))
    plan = viewalign.gain(store, dataset, tmp_path / "gain", **QUICK)
    grid = Grid(plan.study, plan.folder)
    whole = estimate_seconds([grid])
    assert estimate_seconds([grid, grid]) == pytest.approx(whole), "cells that both have are run once"
    (pretraining,) = (cell for cell in grid.cells if cell.name == "pretrain/pretrained/0")
    pretraining.folder.mkdir(parents=True)
    write_json(pretraining.folder / "cell.json", {"status": "done"})
    assert whole - estimate_seconds([grid]) == pytest.approx(2 * 2.0)
    record(grid, 0.0)
    assert estimate_seconds([grid]) == 0


def test_windows_are_counted_in_files_that_itk_does_not_read(tmp_path):
    from viewalign.studies import gain_cost

    image = np.random.default_rng(0).random((40, 32, 24), dtype=np.float32)
    nibabel.save(nibabel.MGHImage(image, np.eye(4)), tmp_path / "a.mgz")
    recipe = SimpleNamespace(views=SimpleNamespace(patch_size=(32, 32, 32)))
    assert gain_cost._windows(SimpleNamespace(image=tmp_path / "a.mgz"), recipe) == 2


@pytest.mark.slow
def test_the_command_prints_the_expected_time_first(store, dataset, tmp_path, monkeypatch):
    pytest.importorskip("nnunetv2")
    from viewalign.studies import gain_cost

    monkeypatch.setattr(gain_cost, "seconds_per_step", lambda *_: (2.0, "made"))
    words = ["gain", str(store), "--labelled", str(dataset), "-o", str(tmp_path / "gain"), "--dry-run", "steps=2"]
    result = CliRunner().invoke(app, [*words, "device=cpu", "shots=2"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Expected: about ")
    assert "evaluate/tuned-all/scratch/2" in result.output


@pytest.mark.long
def test_a_task_from_the_pretraining_to_the_page(store, task, tmp_path):
    settings = {**QUICK, "finetune": {"epochs": 1, "draws": 100}, "rates": [1e-3, 1e-2]}
    plan = viewalign.gain(store, task, tmp_path / "gain", **settings)
    folders = (Path(next(iter(one.evaluations.values())).task) for one in (plan.rates, plan.study))
    tried, test = (read_manifest(folder, read_spec(task)) for folder in folders)
    assert {case.case for case in tried} == {case.case for case in test if case.split == "train"}
    assert plan.run() == 0, [cell.record for cell in Grid(plan.study, plan.folder).cells]
    found = plan.result()
    assert {one["evaluation"] for one in found["comparisons"]} == {"tuned-2", "tuned-all", "frozen-2"}
    assert "2 cases of each class" in found["headline"]
    assert found["headline"] in (plan.folder / "report.html").read_text()
    assert [len(one["values"]) for one in found["rates"]] == [2, 2]


@pytest.mark.long
def test_a_segmentation_from_the_pretraining_to_the_page(store, dataset, tmp_path):
    pytest.importorskip("nnunetv2")
    quick = {"epochs": 1, "iterations": 1, "patch_size": [16, 16, 16], "workers": 1}
    shots = [99]  # left out, so that only two networks are fine-tuned
    common = {key: value for key, value in COMMON.items() if key != "heads"}
    settings = {**QUICK, "recipe": "mae-resenc-xs", "pretrain": common, "seeds": 1, "finetune": quick, "shots": shots}
    plan = viewalign.gain(store, dataset, tmp_path / "gain", **settings)
    assert plan.run() == 0, [cell.record for cell in Grid(plan.study, plan.folder).cells]
    assert "(only one seed)" in plan.result()["headline"]
