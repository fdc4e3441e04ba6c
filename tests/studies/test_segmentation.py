"""The evaluation by nnU-Net: checked before anything runs, prepared once, and apart from what the user has set."""

import json
import subprocess
import sys
import time

import pytest

from viewalign.errors import UserError
from viewalign.finetuning.segmentation import environment
from viewalign.studies import segmentation as segmenting
from viewalign.studies import table
from viewalign.studies.labelled import classes_in
from viewalign.studies.run import run_study

from .conftest import COMMON

QUICK = {
    "epochs": 1,
    "iterations": 1,
    "validation_iterations": 1,
    "warmup_epochs": 0,
    "patch_size": [16, 16, 16],
    "batch": 2,
}
QUICK |= {"spacing": "dataset", "tta": False, "device": "cpu", "workers": 1}


def evaluation(shots=1, **settings):
    chosen = {key: value for key, value in {**QUICK, **settings}.items() if value is not None}
    return {"seg": {"kind": "segmentation", "shots": shots, "settings": chosen}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epoch": 3}, "evaluations.seg.*'epoch'.*'epochs'"),
        ({"flips": False}, "'tta'"),
        ({"seed": 3}, "evaluations.seg.*settings.seed"),
        ({"validation": "c*"}, "settings.validation"),
        ({"patch_size": [17, 16, 16]}, "17×16×16"),
        ({"spacing": None}, "spacing.*dataset"),
        ({"device": "tpu"}, "settings.device"),
        ({"epochs": 2, "warmup_epochs": 5}, r"warm-up.*\b2\b"),
        ({"tolerance": "thick"}, "tolerance.*thick"),
        ({"folds": "all"}, "settings.folds"),
    ],
)
def test_invalid_settings_are_errors_before_anything_runs(make, tmp_path, changes, said):
    pytest.importorskip("nnunetv2")
    with pytest.raises(UserError, match=said):
        make(evaluations=evaluation(**changes))
    assert not (tmp_path / "out").exists()


def test_results_do_not_depend_on_the_machine(make):
    pytest.importorskip("nnunetv2")
    here, there = (
        {cell.name: cell.folder for cell in make(evaluations=evaluation(**own)).cells}
        for own in ({}, {"device": "auto", "gpus": 2, "workers": 3})
    )
    assert here == there


def test_the_device_is_that_of_the_study(make):
    pytest.importorskip("nnunetv2")
    grids = [make(evaluations=evaluation(device=own), device="cpu") for own in (None, "cuda")]
    assert [grid.evaluator._evaluator(grid.study.evaluations["seg"]).machine["device"] for grid in grids] == [
        "cpu",
        "cuda",
    ]


def test_more_shots_than_cases(make):
    pytest.importorskip("nnunetv2")
    with pytest.raises(UserError, match="shots=5"):
        make(evaluations=evaluation(shots=5))


def test_a_missing_nnunet_is_an_error(make, monkeypatch):
    monkeypatch.setattr(environment.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"evaluations.seg.*nnunetv2"):
        make(evaluations=evaluation())


@pytest.mark.long
def test_cells_share_the_prepared_dataset_and_resume(make, tmp_path, monkeypatch):
    pytest.importorskip("nnunetv2")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "the user's own"))
    arms = {"untrained": {"recipe": "mae-resenc-xs", "untrained": True}, "mae": {"recipe": "mae-resenc-xs"}}
    arms["untrained"]["finetune"] = {"lr": 0.02}
    common = {key: value for key, value in COMMON.items() if key != "heads"}
    grid = make(arms=arms, evaluations=evaluation(), common=common)
    works = []
    real = segmenting.SegmentationEvaluator._run_worker
    monkeypatch.setattr(
        segmenting.SegmentationEvaluator,
        "_run_worker",
        lambda self, folder, job, *more: works.append(job) or real(self, folder, job, *more),
    )
    assert run_study(grid) == 0, [cell.record for cell in grid.cells]
    assert [job["do"] for job in works] == ["prepare", "finetune", "finetune"]
    scratch, tuned = (job["settings"] for job in works[1:])
    assert (scratch["from_scratch"], tuned["from_scratch"]) == (True, False)
    assert (scratch["seed"], tuned["seed"]) == (0, 0)
    assert (scratch["lr"], "lr" in tuned) == (0.02, False)
    for cell in grid.cells[2:]:
        assert set(cell.record["cases"]) == {"c1", "c2"}
        assert (cell.folder / "training.txt").read_text() == "c0\n"
        assert not (cell.folder / "nnunet").exists()
        dice = [one["dice"] for one in cell.record["cases"].values()]
        assert cell.record["measures"]["dice"] == pytest.approx(sum(dice) / 2)
    (place,) = (tmp_path / "out" / "data").glob("nnunet-*")
    told = json.loads((place / "raw" / "Dataset900_Study" / "dataset.json").read_text())
    assert told["labels"] == {"background": 0, "class 1": 1} == {"background": 0} | classes_in(grid.labelled.all)
    kept = {path.name for path in (place / "preprocessed" / "Dataset900_Study").iterdir()}
    assert "viewalign_encoders" not in kept
    assert not (tmp_path / "the user's own").exists()
    assert {row["measure"] for row in table.collect(grid)} == {"dice", "nsd"}
    # A cell that was killed goes on in its own folder.
    (grid.cells[2].folder / "cell.json").unlink()
    assert run_study(make(arms=arms, evaluations=evaluation(), common=common)) == 0
    assert [job["do"] for job in works[3:]] == ["finetune"]


def test_the_worker_ends_with_its_study(tmp_path):
    code = (
        "import sys, time; from viewalign.studies import segmentation_worker as w\n"
        "w.work = lambda job: print('ready', flush=True) or time.sleep(60)\n"
        "from pathlib import Path; w.main(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    (tmp_path / "job.json").write_text("{}")
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "job.json"), str(tmp_path / "answer.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout.readline() == b"ready\n"
    began = time.monotonic()
    child.stdin.close()
    assert child.wait(timeout=30) == -9
    assert time.monotonic() - began < 30
    assert not (tmp_path / "answer.json").exists()
