"""What is in a run's folder, and the answer where a folder is no run."""

from pathlib import Path

import pytest

from viewalign.errors import UserError
from viewalign.recipes.loading import load
from viewalign.reports.run_data import read_run
from viewalign.weights.run_folder import RunFolder, no_run, open_folder, read_log, write_config


def test_runs_one_level_below_are_named(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    text = str(no_run(tmp_path))
    assert text.endswith(f"Runs in it: {tmp_path / 'a'}, {tmp_path / 'b'}.")
    for call in (read_run, lambda path: RunFolder(path).recipe()):
        with pytest.raises(UserError, match="Runs in it"):
            call(tmp_path)


def test_the_run_above_a_folder_or_a_file_is_named(tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    for name, reason in (("checkpoints", "no config.yaml"), ("config.yaml", "it is a file")):
        assert str(no_run(tmp_path / name)).endswith(f"{reason}. The folder above it is a run: {tmp_path}.")


@pytest.mark.parametrize(("name", "reason"), [("empty", "config.yaml"), ("nowhere", "no such folder")])
def test_a_folder_without_runs(name, reason, tmp_path):
    (tmp_path / "empty").mkdir()
    text = str(no_run(tmp_path / name))
    assert reason in text
    assert "Runs in it" not in text


def test_a_folder_that_cannot_be_created_is_an_error_before_the_run_begins(tmp_path):
    (tmp_path / "file").touch()
    recipe = load("cva-resenc-xs", ["data=store", f"out={tmp_path / 'file' / 'run'}"])
    with pytest.raises(UserError, match=r"file/run cannot be created"):
        open_folder(recipe, resume=False)


def test_a_run_s_recipe_can_be_used_from_any_folder_and_after_the_run_was_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").touch()
    recipe = load("cva-resenc-xs", ["data=store", "out=run", "init=weights.pt", "validate.probe.task=task"])
    folder, _ = open_folder(recipe, resume=False)
    write_config(folder, recipe)
    Path("run").rename("moved")
    monkeypatch.chdir("/")
    read = load(str(tmp_path / "moved" / "config.yaml"))
    assert (Path(read.data), Path(read.out)) == (tmp_path / "store", tmp_path / "moved")
    assert (read.init.weights, read.validate_.probe.task) == (f"{tmp_path}/weights.pt", f"{tmp_path}/task")
    changed = {"data", "out", "init", "validate_"}
    assert read.model_dump(exclude=changed) == recipe.model_dump(exclude=changed)


def test_paths_may_be_written_differently_when_a_run_resumes(tmp_path, monkeypatch):
    """The same command line, whose paths are relative to the folder it is called from, and a task that was moved."""
    monkeypatch.chdir(tmp_path)
    settings = ["data=store", "out=run", "validate.probe.task=task"]
    recipe = load("cva-resenc-xs", settings)
    folder, _ = open_folder(recipe, resume=False)
    write_config(folder, recipe)
    assert open_folder(recipe, resume=True)[1].validate_.probe.task == "task"
    moved = load("cva-resenc-xs", [*settings[:2], "validate.probe.task=elsewhere/task"])
    assert open_folder(moved, resume=True)[1].validate_.probe.task == "elsewhere/task"
    for change in ("validate.probe.folds=3", "optim.lr=0.5"):
        with pytest.raises(UserError, match=change.split("=")[0]):
            open_folder(load("cva-resenc-xs", [*settings, change]), resume=True)
    with pytest.raises(UserError, match=r"validate\.probe"):
        open_folder(load("cva-resenc-xs", settings[:2]), resume=True)


def test_rows_of_a_log_without_kind_or_step_are_skipped(tmp_path):
    whole = ['{"kind": "train", "step": 1}', '{"kind": "train", "step": 2, "loss": NaN}']
    torn = [
        "[1]",
        "3",
        "{",
        '{"kind": "train"}',
        '{"step": 1}',
        '{"kind": 1, "step": 1}',
        '{"kind": "train", "step": "x"}',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join([whole[0], *torn, whole[1]]))
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2]
