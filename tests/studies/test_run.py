"""The grid on tiny real pretrainings: what is done stays, what changed is done again, what fails is named."""

import dataclasses
import json
import logging
import signal

import numpy as np
import pytest

from viewalign.errors import UserError
from viewalign.finetuning.segmentation.encoders import write_untrained
from viewalign.studies import run, table
from viewalign.studies.cells import only
from viewalign.studies.run import run_study
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
    return lambda: make(arms=arms, common=common)


@pytest.mark.slow
def test_an_arm_starts_from_an_encoder_from_elsewhere(from_elsewhere, tmp_path):
    grid = from_elsewhere()
    cells = only(grid.cells, "pretrain/more/0")
    assert run_study(grid, cells=cells) == 0
    assert str(tmp_path / "encoder.pth") in (cells[-1].folder / "run" / "config.yaml").read_text()


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
