"""Evaluations on a task: probes of whole cases, and fine-tuning."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import rankdata

from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.studies import table
from viewalign.studies.run import run_study
from viewalign.tasks.manifest import TaskCase, read_manifest, write_manifest
from viewalign.tasks.spec import TaskSpec, read_spec, write_spec

from .conftest import COMMON

PLAIN = {key: value for key, value in COMMON.items() if key != "heads"}
ARMS = {"untrained": {"recipe": "mae-resenc-xs", "untrained": True}, "mae": {"recipe": "mae-resenc-xs"}}


@pytest.fixture
def task(tmp_path):
    rng = np.random.default_rng(0)
    spec = TaskSpec.model_validate({"name": "made", "kind": "regression", "channels": [{"name": "t1"}]})
    folder, cases = tmp_path / "task", []
    (folder / "images").mkdir(parents=True)
    for k in range(8):
        image = rng.normal(size=(16, 16, 16)).astype(np.float32) + 5
        image[:, :, 8:] *= 1 + k / 8
        path = folder / "images" / f"c{k}.nii.gz"
        sitk.WriteImage(sitk.GetImageFromArray(image), str(path))
        cases.append(TaskCase(f"c{k}", f"s{k}", {"t1": path}, target=40.0 + k))
    write_spec(spec, folder)
    write_manifest(cases, spec, folder)
    return folder


def evaluations(**tuned):
    settings = {"epochs": 1, "folds": 2, "draws": 100, "device": "cpu", **tuned}
    return {
        "vectors": {"kind": "feature_probe", "task": "task", "folds": 2},
        "tuned": {"kind": "finetune", "task": "task", "settings": settings},
    }


@pytest.mark.usefixtures("task")
def test_invalid_settings_are_errors_before_anything_runs(make, tmp_path):
    with pytest.raises(UserError, match=r"evaluations.tuned.*'epochs'"):
        make(evaluations=evaluations(epoch=2))
    with pytest.raises(UserError, match=r"evaluations.tuned.*settings.seed"):
        make(evaluations=evaluations(seed=2))
    with pytest.raises(UserError, match=r"evaluations.vectors.*nowhere"):
        make(evaluations={"vectors": {"kind": "feature_probe", "task": "nowhere"}})
    with pytest.raises(UserError, match=r"evaluations.tuned with arms.mae.finetune.*'epochs'"):
        make(arms={**ARMS, "mae": {**ARMS["mae"], "finetune": {"epoch": 2}}}, evaluations=evaluations(), common=PLAIN)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("task")
def test_settings_of_an_arm_change_its_fine_tunings_only(make):
    plain, own = (
        {cell.name: cell.folder.name for cell in make(arms=arms, evaluations=evaluations(), common=PLAIN).cells}
        for arms in (ARMS, {**ARMS, "mae": {**ARMS["mae"], "finetune": {"lr": 0.01}}})
    )
    assert {name for name in plain if own[name] != plain[name]} == {"evaluate/tuned/mae/0"}


@pytest.mark.usefixtures("task")
def test_results_do_not_depend_on_the_device(make):
    """A study that continues on another machine would run its fine-tunings once more."""
    here, there = (
        {c.name: c.folder for c in make(arms=ARMS, evaluations=evaluations(**own), common=PLAIN, device=device).cells}
        for own, device in (({}, "auto"), ({"device": "auto"}, "cpu"))
    )
    assert here == there


@pytest.mark.usefixtures("task")
def test_a_recipe_of_a_fine_tuning_counts_by_content(make, tmp_path):
    def named(file):
        chosen = evaluations()
        chosen["tuned"]["recipe"] = str(file)
        cells = make(arms=ARMS, evaluations=chosen, common=PLAIN).cells
        return next(cell.folder.name for cell in cells if cell.name == "evaluate/tuned/mae/0")

    file = tmp_path / "own.yaml"
    file.write_text("lr: 0.01\n")
    before = named(file)
    assert named(file.rename(tmp_path / "renamed.yaml")) == before
    file.write_text("lr: 0.01\ndevice: cpu\n")
    assert named(file) == before
    file.write_text("lr: 0.02\n")
    assert named(file) != before


def test_cells_depend_on_subjects_and_images_of_a_task(make, task):
    """A leak that was mended in the manifest would keep its figures."""

    def named():
        return {
            cell.name: cell.folder.name
            for cell in make(arms=ARMS, evaluations=evaluations(), seeds=1, common=PLAIN).cells
        }

    before, spec = named(), read_spec(task)
    cases = read_manifest(task, spec)
    write_manifest([replace(case, subject="s0") if case.case == "c1" else case for case in cases], spec, task)
    joined = named()
    write_manifest(cases, spec, task)
    assert named() == before
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(cases[0].images["t1"])))
    array[3, 3, 3] += 1
    sitk.WriteImage(sitk.GetImageFromArray(array), str(cases[0].images["t1"]))
    redrawn = named()
    for after in (joined, redrawn):
        changed = {name for name in before if after[name] != before[name]}
        assert changed == {name for name in before if name.startswith("evaluate/")}
    cases[0].images["t1"].unlink()
    with pytest.raises(UserError, match=r"c0\.nii\.gz"):
        named()


@pytest.mark.long
def test_both_evaluations_cover_every_arm(make, task):
    grid = make(arms=ARMS, evaluations=evaluations(), seeds=2, common=PLAIN)
    assert run_study(grid) == 0, [cell.record for cell in grid.cells]
    rows = {(row["evaluation"], row["measure"], row["arm"]): row for row in table.collect(grid)}
    for evaluation in ("vectors", "tuned"):
        two = {arm: rows[evaluation, "mae", arm] for arm in ARMS}
        orders = [rankdata([two[arm]["values"][seed] for arm in ARMS]) for seed in "01"]
        assert [two[arm]["rank"] for arm in ARMS] == pytest.approx(np.mean(orders, axis=0).tolist())
    assert len(list((grid.out / "data").glob("task-*"))) == 1  # cases are prepared once
    assert not list(grid.out.glob("cells/evaluate/tuned/*/*/*/tuning/fold_*"))
    names = [cell.folder for cell in make(arms=ARMS, evaluations=evaluations(), seeds=2, common=PLAIN).cells]
    assert names == [cell.folder for cell in grid.cells]
    manifest = task / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("47.0", "48.0"))
    changed = make(arms=ARMS, evaluations=evaluations(), seeds=2, common=PLAIN)
    assert [cell.done for cell in changed.cells] == [cell.evaluation is None for cell in changed.cells]
