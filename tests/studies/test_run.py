"""The grid on tiny real pretrainings: what is done stays, what changed is done again, what fails is named."""

import dataclasses
import json
import logging
import signal

import numpy as np
import pytest

from viewalign.data.readers.itk import sitk
from viewalign.errors import UserError
from viewalign.finetuning.segmentation.encoders import write_untrained
from viewalign.reports.study import write_page
from viewalign.studies import run, table
from viewalign.studies.cells import only, share
from viewalign.studies.run import run_study
from viewalign.utils.io import write_json
from viewalign.utils.locks import locked

from .conftest import COMMON


@pytest.fixture
def told(caplog):
    """Return a call that gives the messages of the study so far."""
    caplog.set_level(logging.INFO, logger="viewalign")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "viewalign.studies.run"]


def test_a_common_setting_that_no_arm_reads_is_rejected(make):
    assert make().recipes["mae", 0].heads.width == 2048, "which cva reads, and mae does not"
    with pytest.raises(UserError, match=r"common.*optim\.momentum.*optim\.name=adamw"):
        make(common={**COMMON, "optim": {"momentum": 0.5}})


def test_a_probe_during_pretraining_is_rejected(make, tmp_path):
    with pytest.raises(UserError, match=r"arms\.untrained: validate\.probe"):
        make(common={**COMMON, "validate": {"every": 1, "probe": {"task": str(tmp_path)}}})


def test_initial_weights_count_by_content(make, tmp_path):
    """Other weights in a file of the same name would keep the results of the first."""
    common = {key: value for key, value in COMMON.items() if key != "heads"}

    def cell(file, arm="init"):
        arms = {"init": {"recipe": "mae-resenc-xs", "settings": {"init": str(file)}}}
        arms |= {"more": {"recipe": "mae-resenc-xs", "start": "init"}}
        return next(c.folder.name for c in make(arms=arms, common=common).cells if c.name == f"pretrain/{arm}/0")

    plain = make(arms={"mae": {"recipe": "mae-resenc-xs"}}, common=common)
    recipe, file = plain.recipes["mae", 0], tmp_path / "w.pth"
    write_untrained(recipe, plain.evaluator.preparation, file)
    before = cell(file), cell(file, "more")
    assert cell(file.rename(tmp_path / "renamed.pth")) == before[0]
    write_untrained(recipe.model_copy(update={"seed": 1}), plain.evaluator.preparation, file)
    after = cell(file), cell(file, "more")
    assert before[0] != after[0]
    assert before[1] != after[1]
    with pytest.raises(UserError, match="nowhere"):
        cell("nowhere.pth")


def changed(before, after):
    """Return the names of cells whose results are not those of another grid."""
    folders = {cell.name: cell.folder for cell in before.cells}
    return {cell.name for cell in after.cells if cell.folder != folders[cell.name]}


def test_an_untrained_network_does_not_depend_on_training(make, tmp_path):
    before = make()
    assert not any("untrained" in name for name in changed(before, make(steps=3, common={**COMMON, "batch": 3})))
    larger = make(common={**COMMON, "views": {"patch_size": [16, 16, 32]}})
    description = tmp_path / "store" / "store.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "recipe": {"spacing": 2}}))
    for after in (larger, make()):
        own = {name for name in changed(before, after) if "/untrained/" in name}
        assert own == {"pretrain/untrained/0", "evaluate/voxels/untrained/0", "evaluate/places/untrained/0"}


def test_retrieval_depends_on_test_images_alone(make, tmp_path):
    before = make()
    where = {"images": "images", "labels": "labels", "learn": ["c0"], "test": ["c1", "c2"]}
    array = np.zeros((18, 18, 18), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "labels" / "c1.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "images" / "c0.nii.gz"))
    assert {name.split("/")[1] for name in changed(before, make())} == {"voxels"}
    own = {"data": {"root": str(tmp_path), "store": "store", "labelled": {**where, "test": ["c1"]}}}
    assert {name.split("/")[1] for name in changed(before, make(**own))} == {"voxels", "places"}


@pytest.fixture
def from_elsewhere(make, tmp_path):
    """A study of an encoder that it does not train, and of an arm that starts from it."""
    common = {key: value for key, value in COMMON.items() if key != "heads"}
    first = make(arms={"mae": {"recipe": "mae-resenc-xs"}}, common=common)
    write_untrained(first.recipes["mae", 0], first.evaluator.preparation, tmp_path / "encoder.pth")
    arms = {
        "other": {"recipe": "mae-resenc-xs", "encoder": "encoder.pth"},
        "more": {"recipe": "mae-resenc-xs", "start": "other"},
    }
    return lambda **more: make(arms=arms, common=common, **more)


@pytest.mark.slow
def test_an_arm_starts_from_an_encoder_from_elsewhere(from_elsewhere, tmp_path):
    grid = from_elsewhere()
    cells = only(grid.cells, "pretrain/more/0")
    assert run_study(grid, cells=cells) == 0
    assert str(tmp_path / "encoder.pth") in (cells[-1].folder / "run" / "config.yaml").read_text()


def test_every_seed_starts_from_one_encoder(from_elsewhere):
    grid = from_elsewhere(seeds=3)
    names = [cell.name for cell in grid.cells if cell.evaluation is None]
    assert names == ["pretrain/other/0", *(f"pretrain/more/{seed}" for seed in range(3))]
    assert {cell.needs for cell in grid.cells if cell.name.startswith("pretrain/more")} == {grid.cells[0]}
    one, other = (share(grid.study, grid.cells, f"{k}/2") for k in (1, 2))
    assert (one, other) == (grid.cells, [])


def test_encoders_from_elsewhere_are_probed_again_if_images_are_prepared_otherwise(from_elsewhere, tmp_path):
    before = {cell.name: cell.folder for cell in from_elsewhere().cells}
    description = tmp_path / "store" / "store.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "recipe": {"spacing": 2}}))
    after = {cell.name: cell.folder for cell in from_elsewhere().cells}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"evaluate/voxels/other/0", "evaluate/places/other/0"}


@pytest.mark.slow
def test_done_cells_stay_and_changed_ones_are_done_again(make, told):
    grid = make()
    assert [cell.name for cell in grid.cells][:3] == ["pretrain/untrained/0", "pretrain/mae/0", "pretrain/cva/0"]
    assert run_study(grid, iter([True, True, False]).__next__) == 4
    assert len(told()) == 2
    assert run_study(make()) == 0
    assert len(told()) == len(grid.cells) == 9
    assert run_study(make()) == 0
    assert len(told()) == 9
    changed = make(evaluations={"voxels": {"kind": "voxel_probe", "shots": 1, "per_class": 10, "test_voxels": 200}})
    assert [cell.done for cell in changed.cells] == [True] * 3 + [False] * 3


@pytest.mark.slow
def test_a_failed_cell_is_reported_and_the_others_run(make, monkeypatch, told):
    real = run.pretrain

    def broken(recipe, **more):
        if recipe.method == "mae":
            raise RuntimeError("the disk fell over")
        return real(recipe, **more)

    monkeypatch.setattr(run, "pretrain", broken)
    assert run_study(make()) == 3
    assert any("pretrain/mae/0: the disk fell over" in line for line in told())
    done = {cell.name for cell in make().cells if cell.done}
    assert done == {"pretrain/untrained/0", "evaluate/voxels/untrained/0", "evaluate/places/untrained/0"}


def test_the_pretraining_that_failed_is_named(make, monkeypatch, told):
    monkeypatch.setattr(run, "pretrain", lambda *_, **__: 1 / 0)
    grid = make()
    assert run_study(grid, cells=only(grid.cells, "evaluate/places/cva/*")) == 3
    assert any(line.endswith("evaluate/places/cva/0: pretrain/mae/0 failed") for line in told())


@pytest.mark.slow
def test_a_signal_in_the_last_step_of_a_run_stops_the_study_after_it(make, monkeypatch):
    real = run.pretrain

    def signalled(recipe, **more):
        return dataclasses.replace(real(recipe, **more), signal=signal.SIGTERM)

    monkeypatch.setattr(run, "pretrain", signalled)
    assert run_study(make()) == 128 + signal.SIGTERM
    assert {cell.name for cell in make().cells if cell.done} == {"pretrain/untrained/0", "pretrain/mae/0"}


def test_more_shots_than_cases_are_an_error_before_anything_runs(make, tmp_path):
    with pytest.raises(UserError, match="shots=5"):
        make(evaluations={"voxels": {"kind": "voxel_probe", "shots": 5}})
    with pytest.raises(UserError, match="'optim"):
        make(common={"optim": {"lrr": 1}})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_table_has_the_values_of_the_cells(make):
    grid = make(seeds=2, evaluations={"places": {"kind": "retrieval", "cells": 3}})
    assert run_study(grid) == 0
    text = table.write(grid)
    rows = {(row["measure"], row["arm"]): row for row in table.collect(grid)}
    assert len(rows) == 9
    cells = [cell for cell in grid.cells if cell.evaluation and cell.arm == "cva"]
    values = [cell.record["measures"]["distance"] for cell in cells]
    chances = {
        c.record["measures"]["distance"] / c.record["measures"]["relative_distance"]
        for c in grid.cells
        if c.evaluation == "places"
    }
    assert max(chances) == pytest.approx(min(chances)), "the same views for every arm, so the same random guess"
    assert 1 < min(chances) < 16
    assert rows["distance", "cva"]["mean"] == pytest.approx(np.mean(values))
    assert rows["distance", "cva"]["difference_seeds"] == 2
    assert "difference_mean" not in rows["distance", "mae"]
    assert f"{np.mean(values):.4f}" in text
    assert "cases_mean" not in rows["distance", "cva"], "places are told of all cases together"
    assert len((grid.out / "table.csv").read_text().splitlines()) == 10


@pytest.mark.slow
def test_differences_over_cases_are_those_of_the_cells(make):
    grid = make(
        seeds=2, evaluations={"voxels": {"kind": "voxel_probe", "shots": 1, "per_class": 20, "test_voxels": 200}}
    )
    assert run_study(grid) == 0
    row = next(row for row in table.collect(grid) if (row["arm"], row["measure"]) == ("cva", "dice"))
    records = {(cell.arm, cell.seed): cell.record for cell in grid.cells if cell.evaluation}
    apart = [
        records["cva", seed]["cases"][case]["dice"] - records["mae", seed]["cases"][case]["dice"]
        for seed in (0, 1)
        for case in ("c1", "c2")
    ]
    assert row["cases_mean"] == pytest.approx(np.mean(apart))
    assert (row["cases_pairs"], row["cases_low"]) == (2, None)
    assert f"{row['cases_mean']:+.4f}" in table.write(grid)


PLACES = {"places": {"kind": "retrieval", "cells": 3}}


def write_results(grid, values, **failed):
    """Write results of cells as if they had run; `values` by arm and seed, errors by arm."""
    for cell in grid.cells:
        result = None
        if cell.arm in failed:
            result = {"status": "failed", "error": failed[cell.arm]} if cell.evaluation is None else None
        elif cell.evaluation is None:
            result = {"status": "done", "measures": {}}
        elif cell.seed < len(values[cell.arm]):
            result = {"status": "done", "measures": {"hit": values[cell.arm][cell.seed]}}
        if result is not None:
            write_json(cell.folder / "cell.json", result)


def test_one_pretraining_is_not_several(make):
    arms = {"mae": {"recipe": "mae-resenc-xs"}, "one": {"recipe": "mae-resenc-xs", "once": True}}
    arms |= {"cva": {"recipe": "cva-resenc-xs"}, "also": {"recipe": "cva-resenc-xs"}}
    grid = make(seeds=3, arms=arms, evaluations=PLACES)
    values = {"mae": [0.1, 0.2, 0.4], "one": [0.3, 0.30001, 0.30002], "cva": [0.2, 0.2, 0.5], "also": [0.3, 0.2, 0.6]}
    write_results(grid, values)
    text = table.write(grid)
    told = json.loads((grid.out / "table.json").read_text())
    rows = {row["arm"]: row for row in told["rows"]}
    assert (rows["one"]["runs"], rows["one"]["seeds"], rows["mae"]["runs"]) == (1, 3, 3)
    assert rows["one"]["values"] == {"0": 0.3, "1": 0.30001, "2": 0.30002}
    assert rows["one"]["mean"] == pytest.approx(0.30001)
    assert [rows["one"][key] for key in ("low", "difference_low", "p", "p_holm")] == [None] * 4
    assert rows["cva"]["p_holm"] == pytest.approx(2 * min(rows[arm]["p"] for arm in ("cva", "also")))
    assert told["resolution"][0]["freedom"] == 4
    assert "3 (1 run)" in text
    assert (grid.out / "table.csv").read_text().splitlines()[2].split(",")[6:8] == ["3", "1"]


def test_missing_cells_are_named_with_their_errors(make):
    grid = make(seeds=2, evaluations=PLACES, arms={
        "untrained": {"recipe": "mae-resenc-xs", "untrained": True},
        "mae": {"recipe": "mae-resenc-xs"},
        "cva": {"recipe": "cva-resenc-xs", "title": "Aligned | <views>"},
    })  # fmt: skip
    write_results(grid, {"untrained": [0.1, 0.2], "mae": [0.3]}, cva="the disk '/home/anna/x' fell over.")
    text = table.write(grid)
    told = json.loads((grid.out / "table.json").read_text())
    missing = {one["cell"]: one["error"] for one in told["missing"]}
    assert missing == {
        "evaluate/places/cva/0": "the disk '…/x' fell over.",
        "evaluate/places/cva/1": "the disk '…/x' fell over.",
        "evaluate/places/mae/1": None,
    }
    assert [(row["arm"], row["mean"], row["seeds"]) for row in told["rows"]][2] == ("cva", None, 0)
    sentence = "places: 3 of 6 cells of this evaluation are missing: cva (seeds 0, 1: the disk '…/x' fell over); mae"
    page = write_page(grid.out).read_text()
    assert sentence in text
    assert sentence.replace("'", "&#39;") in page
    assert r"| Aligned \| <views> (cva) | – |" in text
    assert "<td>Aligned | &lt;views&gt; (cva)</td>" in page


def test_an_undefined_measure_is_left_out(make):
    grid = make(seeds=2, evaluations=PLACES)
    write_results(grid, {"untrained": [0.1, 0.2], "mae": [0.3, float("nan")], "cva": [0.5, 0.4]})
    rows = {row["arm"]: row for row in table.collect(grid)}
    assert [rows[arm]["rank"] for arm in ("cva", "mae", "untrained")] == [1.0, 2.0, 3.0]
    assert (rows["mae"]["mean"], rows["mae"]["seeds"]) == (0.3, 1)


@pytest.mark.slow
def test_cells_of_another_process_are_skipped(make, told):
    grid = make()
    first = grid.cells[1]
    first.folder.mkdir(parents=True)
    with locked(first.folder / ".lock"):
        assert run_study(grid) == 4
    assert any(line.endswith("pretrain/mae/0: run by another process") for line in told())
    done = {cell.name for cell in grid.cells if cell.done}
    assert done == {"pretrain/untrained/0", "evaluate/voxels/untrained/0", "evaluate/places/untrained/0"}
    assert run_study(make(), cells=only(make().cells, "evaluate/places/mae/*")) == 0
    done = {cell.name for cell in make().cells if cell.done} - done
    assert done == {"pretrain/mae/0", "evaluate/places/mae/0"}
