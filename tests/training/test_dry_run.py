"""A dry run makes the checks of a start, states what it would do, and writes nothing."""

import os

import pytest
from run_fixtures import TINY

import viewalign
from viewalign.cli.main import run
from viewalign.errors import UserError
from viewalign.training import dry_run as module
from viewalign.training.dry_run import dry_run
from viewalign.training.run import pretrain
from viewalign.training.throughput import measured_step


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Time no step and simulate no memory: both have tests of their own."""
    monkeypatch.setattr(module, "seconds_per_step", lambda *_: (2.0, "made up"))
    monkeypatch.setattr(module, "simulated_peak", lambda *_: 3_000_000_000)
    monkeypatch.setattr(module, "memory_bytes", lambda: 4_000_000_000)


def everything_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_states_what_a_start_would_do_and_writes_nothing(tiny_recipe, tmp_path, caplog):
    caplog.set_level("INFO")
    before = everything_in(tmp_path)
    found = dry_run(tiny_recipe("runtime.accumulate=2"))
    assert everything_in(tmp_path) == before
    assert (found.step, found.seconds, found.facts["train_volumes"], found.facts["device"]) == (0, 24.0, 8, "CPU")
    text = found.text()
    for words in ("3.0 GB of 4.0 GB", "24 s", "config.yaml", str(tmp_path / "run"), "would do 6 steps"):
        assert words in text
    assert "Too much" not in text
    assert "8 training volumes, 8 subjects; 6 steps of batch 4" in caplog.text
    assert found.as_json()["memory_bytes"] == 3_000_000_000


@pytest.mark.slow
def test_a_dry_run_of_a_resumption_starts_at_the_newest_checkpoint(tiny_recipe, tmp_path):
    pretrain(tiny_recipe(steps=2))
    before = everything_in(tmp_path)
    assert "resume from step 2 and do 4 more" in dry_run(tiny_recipe(), resume=True).text()
    finished = dry_run(tiny_recipe(steps=2), resume=True)
    assert (finished.step, finished.seconds) == (2, None)
    assert "is finished: 2 steps" in finished.text()
    dry_run(tiny_recipe(f"init.weights={tmp_path / 'run'}", out="other"))
    assert everything_in(tmp_path) == before


def test_memory_that_does_not_suffice_is_stated(tiny_recipe, monkeypatch):
    def too_much(*_):
        raise MemoryError

    monkeypatch.setattr(module, "memory_bytes", lambda: 2_000_000_000)
    monkeypatch.setattr(module, "seconds_per_step", too_much)
    text = dry_run(tiny_recipe()).text()
    assert "Too much" in text
    assert "unknown" in text


@pytest.mark.slow
def test_the_part_of_a_batch_that_is_timed_may_be_one_volume(tiny_recipe, monkeypatch):
    """Contrastive methods need more of a batch, not of its parts."""

    def timed(recipe, _, precision, device, volumes):
        return measured_step(recipe, precision, 1, device, volumes), "timed"

    monkeypatch.setattr(module, "seconds_per_step", timed)
    assert dry_run(tiny_recipe("runtime.accumulate=4", "runtime.recompute=true")).seconds > 0


WRONG = {
    "an uneven batch": ["runtime.accumulate=3"],
    "a missing store": ["data=nowhere"],
    "initial weights that do not exist": ["init.weights=nowhere/checkpoint.pth"],
    "a filter that leaves nothing": ["sampling.modalities=[T2w]"],
    "other channels": ["network.channels=2"],
    "a folder of another use": ["out=used"],
    "a folder in a file": ["out=file/run"],
}


@pytest.mark.parametrize("settings", WRONG.values(), ids=WRONG)
def test_what_prevents_a_start_is_an_error_of_a_dry_run_too(settings, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = everything_in(tmp_path)
    with pytest.raises(UserError) as ours:
        dry_run(tiny_recipe(*settings))
    assert everything_in(tmp_path) == before
    with pytest.raises((UserError, NotADirectoryError)) as theirs:
        pretrain(tiny_recipe(*settings))
    if settings != ["out=file/run"]:
        assert str(ours.value) == str(theirs.value)


def test_a_folder_that_may_not_be_written_is_an_error(tiny_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write everywhere
    with pytest.raises(UserError, match=f"cannot be written: {tmp_path} is"):
        dry_run(tiny_recipe(out="shut/run"))


def test_the_command_and_the_call_are_dry_too(tiny_store, tmp_path, capsys):
    places = ["cva-resenc-xs", str(tiny_store), "-o", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        run(["pretrain", *places, "--dry-run", "network=resenc-xxs", *TINY])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "Nothing was written. Without --dry-run, this would do" in out
    settings = {"network": "resenc-xxs", "batch": 2, "views": {"patch_size": 16}, "steps": 3}
    found = viewalign.pretrain("cva-resenc-xs", tiny_store, tmp_path / "run", dry_run=True, **settings)
    assert found.recipe.steps == 3
    assert not (tmp_path / "run").exists()
