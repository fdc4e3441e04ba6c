"""A run that was stopped and resumed is the run that was not: same losses to the last bit, same weights."""

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from typer.testing import CliRunner

from viewalign.cli.main import app
from viewalign.data.store import Store, store_from_arrays
from viewalign.errors import ExcludedImageError, UserError
from viewalign.recipes.loading import to_yaml
from viewalign.training import loop, run
from viewalign.training.dry_run import dry_run
from viewalign.training.loop import Trainer
from viewalign.training.run import pretrain
from viewalign.training.signals import StopRequest
from viewalign.utils import precision as arithmetic
from viewalign.utils.locks import LOCK, locked
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import RunFolder, read_log

from .conftest import smooth_volumes

pytestmark = pytest.mark.slow

TIMES = {"samples_per_second", "data_wait"}


def curve(folder, kinds=("train", "health", "validation")):
    rows = [row for row in read_log(folder.log) if row["kind"] in kinds]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def final_state(folder):
    return checkpoints.load(checkpoints.path_of(folder.checkpoints, checkpoints.steps(folder.checkpoints)[-1]))


def assert_same_run(one, other):
    assert curve(one) == curve(other)
    a, b = final_state(one), final_state(other)
    assert a["position"] == b["position"]
    for name, value in a["method"].items():
        assert torch.equal(value, b["method"][name]), name


def stop_after(monkeypatch, step):
    """Make the run stop itself after a step, as a signal would."""
    original = Trainer._train_step

    def stepping(self, *work):
        original(self, *work)
        if self.position.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_train_step", stepping)


@pytest.mark.parametrize("recipe", ["cva-resenc-xs", "cva-primus-xs"])
def test_a_resumed_run_is_bit_identical(recipe, tiny_recipe, monkeypatch):
    settings = ["log.every=2", "checkpoint.every=100"]
    settings += ["network.drop_path=0.1"] if "primus" in recipe else []
    whole = pretrain(tiny_recipe(*settings, recipe=recipe, out="whole", steps=7))
    with monkeypatch.context() as patched:
        stop_after(patched, 3)  # between two log rows, so that averages under way must be kept too
        first = pretrain(tiny_recipe(*settings, recipe=recipe, out="parts", steps=7))
    assert (first.finished, first.step, first.signal, first.exit_code) == (False, 3, signal.SIGTERM, 143)
    second = pretrain(tiny_recipe(*settings, recipe=recipe, out="parts", steps=7), resume="auto")
    assert second.finished
    assert_same_run(whole.folder, second.folder)


def test_a_resumed_run_keeps_the_precision_of_its_start(tiny_recipe, monkeypatch):
    """Another machine would choose another one, and change the run; choice and reason are in the run."""
    monkeypatch.setattr(arithmetic, "cpu_units", lambda: ())
    first = pretrain(tiny_recipe("runtime.precision=auto", steps=2))
    assert first.folder.recipe().runtime.precision == "fp32"
    stated = {"precision": "fp32", "reason": "CPU without AMX-BF16 and AVX512-BF16"}
    assert read_log(first.folder.log)[0]["precision"] == stated
    monkeypatch.setattr(arithmetic, "cpu_units", lambda: ("AMX-BF16",))
    second = pretrain(tiny_recipe("runtime.precision=auto", steps=2), resume="auto")
    assert second.folder.recipe().runtime.precision == "fp32"


@pytest.fixture
def scaled(monkeypatch):
    """Let a CPU take runtime.precision=fp16, with float32 arithmetic under the gradient scaler."""
    choice = arithmetic.Choice("fp16", "for a test")
    monkeypatch.setattr(arithmetic, "settle", lambda *_: choice)
    monkeypatch.setattr(run, "settle", lambda *_: choice)
    monkeypatch.setattr(loop, "autocast", lambda *_: nullcontext())


@pytest.mark.parametrize("parts", [1, 2])
def test_the_scaler_changes_no_bit(parts, tiny_recipe, monkeypatch, request):
    """It multiplies by powers of two, which is exact: clipping sees gradients without it, and so does the optimizer."""
    settings = [f"runtime.accumulate={parts}", "optim.clip=0.5"]
    plain = pretrain(tiny_recipe(*settings, out="plain", steps=3))
    request.getfixturevalue("scaled")
    monkeypatch.setattr(loop, "gradient_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=1024.0))
    scaled_run = pretrain(tiny_recipe(*settings, "runtime.precision=fp16", out="scaled", steps=3))
    assert scaled_run.folder.recipe().runtime.precision == "fp16"
    rows = [[row for row in read_log(one.folder.log) if row["kind"] == "train"] for one in (plain, scaled_run)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert [row["gradient_norm"] for row in rows[0]] == [row["gradient_norm"] for row in rows[1]]


def test_a_run_in_fp16_resumes_with_its_scale(scaled, tiny_recipe, monkeypatch):
    """The scale starts so high that the first steps overflow: they are skipped, it is halved, and all is resumed."""
    monkeypatch.setattr(
        loop, "gradient_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)
    )
    settings = ["log.every=2", "runtime.precision=fp16"]
    whole = pretrain(tiny_recipe(*settings, out="whole", steps=7))
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        pretrain(tiny_recipe(*settings, out="parts", steps=7))
    second = pretrain(tiny_recipe(*settings, out="parts", steps=7), resume="auto")
    assert_same_run(whole.folder, second.folder)
    states = [checkpoints.load(checkpoints.path_of(one.folder.checkpoints, 7)) for one in (whole, second)]
    assert states[0]["scaler"] == states[1]["scaler"] != {}
    assert states[0]["scaler"]["scale"] < 2.0**127
    assert 0 < states[0]["position"]["skipped"] == 7 - states[0]["position"]["updates"]


def test_rows_after_the_last_checkpoint_are_not_written_twice(tiny_recipe):
    outcome = pretrain(tiny_recipe(steps=3))
    with outcome.folder.log.open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 9, "loss": 1.0}) + "\n")
        file.write('{"kind": "train", "step": 10, "lo')  # the line a killed process was writing
    resumed = pretrain(tiny_recipe(steps=3), resume="auto")
    rows = read_log(resumed.folder.log)
    assert max(row["step"] for row in rows) == 3
    assert "extended" not in [row.get("event") for row in rows]


def test_workers_do_not_change_the_run(tiny_recipe):
    runs = [pretrain(tiny_recipe(f"runtime.workers={n}", out=f"w{n}", steps=3)).folder for n in (0, 2)]
    assert_same_run(*runs)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_saves_and_explains_how_to_resume(number, tiny_recipe, tmp_path):
    """The command itself: stopped by a signal, then continued with the very line that it printed."""
    recipe = tiny_recipe("runtime.workers=1", steps=16)
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(recipe))
    process = run_command("pretrain", str(file))
    log = RunFolder(tmp_path / "run").log
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(row["kind"] == "train" for row in read_log(log)):
        time.sleep(0.1)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, out
    assert "Traceback" not in out
    line = out.strip().splitlines()[-1].split()
    assert line[:2] == ["viewalign", "pretrain"], out
    step = checkpoints.steps(RunFolder(tmp_path / "run").checkpoints)[-1]
    assert 0 < step < 16
    resumed = CliRunner().invoke(app, line[1:])
    assert resumed.exit_code == 0, resumed.output
    assert f"Resuming from step {step} of 16" in resumed.output


def test_a_second_signal_ends_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny_recipe, caplog):
    outcome = pretrain(tiny_recipe("checkpoint.every=2", steps=4))
    newest = checkpoints.path_of(outcome.folder.checkpoints, 4) / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    before, weights = curve(outcome.folder), checkpoints.load(checkpoints.path_of(outcome.folder.checkpoints, 2))
    resumed = pretrain(tiny_recipe("checkpoint.every=2", steps=4), resume="auto")
    told = caplog.text
    assert "step_00000004 is damaged" in told
    assert "The checkpoint of step 2 is used instead" in told
    assert curve(resumed.folder) == before
    assert weights["position"]["step"] == 2
    assert final_state(resumed.folder)["step"] == 4, "the damaged one is written again"
    assert (resumed.folder.checkpoints / "step_00000004.damaged").is_dir()
    damaged = [row for row in read_log(resumed.folder.log) if row.get("event") == "checkpoint_damaged"]
    assert len(damaged) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["method"].pop(next(iter(state["method"]))),
        lambda state: state["method"].update(strange=torch.zeros(1)),
        lambda state: state["method"].update({name: value[..., None] for name, value in state["method"].items()}),
        lambda state: state.pop("optimizer"),
        lambda state: state["optimizer"].update(param_groups=[]),
        lambda state: state["position"].update(speed=1),
        lambda state: state.update(averages=[]),
        lambda state: state["method"].update({name: value * math.nan for name, value in state["method"].items()}),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_a_sentence(change, tiny_recipe):
    outcome = pretrain(tiny_recipe(steps=1))
    state = final_state(outcome.folder)
    change(state)
    shutil.rmtree(checkpoints.path_of(outcome.folder.checkpoints, 1))
    checkpoints.save(outcome.folder.checkpoints, 1, {k: v for k, v in state.items() if k not in {"format", "step"}})
    with pytest.raises(UserError, match=r"fit|not finite"):
        pretrain(tiny_recipe(steps=1), resume="auto")


def test_a_bad_line_in_the_log_does_not_block_resuming(tiny_recipe):
    outcome = pretrain(tiny_recipe("checkpoint.every=2", steps=2))
    before = read_log(outcome.folder.log)
    with outcome.folder.log.open("ab") as file:
        file.write(b'{"kind": "train"}\n[1}\n\xff\xfe}\n3}\n{"kind": "train", "step": "x"}\n')
    assert pretrain(tiny_recipe(steps=2), resume="auto").finished
    assert read_log(outcome.folder.log)[: len(before)] == before


def test_volumes_that_can_be_read_again_after_resuming_do_not_count_as_lost(tiny_recipe, monkeypatch):
    original, lost = Store._read, set()

    def read(self, k, *box):
        if k in lost:
            raise ExcludedImageError("the server is away")
        return original(self, k, *box)

    monkeypatch.setattr(Store, "_read", read)
    lost.update({1, 2})
    settings = ["runtime.lost_share=0.25", "batch=8"]
    first = pretrain(tiny_recipe(*settings, steps=2))
    told = [row["volume"] for row in read_log(first.folder.log) if row.get("event") == "unreadable"]
    assert sorted(told) == [1, 2]
    lost.clear()
    lost.add(5)  # one of eight is allowed, three would not be
    assert pretrain(tiny_recipe(*settings, steps=4), resume="auto").finished


def change_state(folder, step, change):
    """Rewrite a checkpoint with a changed state."""
    state = checkpoints.load(checkpoints.path_of(folder.checkpoints, step))
    change(state)
    shutil.rmtree(checkpoints.path_of(folder.checkpoints, step))
    checkpoints.save(folder.checkpoints, step, {k: v for k, v in state.items() if k not in {"format", "step"}})


def test_a_run_is_not_resumed_on_other_images(tiny_recipe, tmp_path):
    """Its held-out subjects would be drawn again; the same images may be elsewhere."""
    volumes = smooth_volumes(24)
    store_from_arrays(tmp_path / "first", dict(list(volumes.items())[:22]))
    store_from_arrays(tmp_path / "grown", volumes)
    outcome = pretrain(tiny_recipe(f"data={tmp_path / 'first'}", steps=2))
    grown = tiny_recipe(f"data={tmp_path / 'grown'}", steps=3)
    for start in (pretrain, dry_run):
        with pytest.raises(UserError, match=r"grown.*other images.*init="):
            start(grown, resume=True)
    assert pretrain(tiny_recipe(f"data={tmp_path / 'grown'}", steps=2), resume=True).finished, "nothing is trained"
    (tmp_path / "first").rename(tmp_path / "moved")
    assert pretrain(tiny_recipe(f"data={tmp_path / 'moved'}", steps=3), resume=True).finished
    change_state(outcome.folder, 3, lambda state: state.pop("data"))  # of an earlier version
    assert pretrain(tiny_recipe(f"data={tmp_path / 'grown'}", steps=4), resume=True).finished


def test_a_run_is_not_resumed_with_other_held_out_subjects(tiny_recipe, tmp_path):
    store = store_from_arrays(tmp_path / "store", smooth_volumes(22))
    pretrain(tiny_recipe(steps=1), store=store)
    store.held_out = frozenset({store.subjects[0]})
    with pytest.raises(UserError, match="held-out subjects"):
        pretrain(tiny_recipe(steps=2), resume=True, store=store)


def test_a_run_that_stops_itself_saves_its_steps_and_resumes_as_if_it_had_not(tiny_recipe, monkeypatch):
    """With bad_steps=9 it would not have stopped."""
    original = loop.update_if_finite

    def update(method, optimizer, norm, number):
        bad = 3 <= next(count) < 6
        return original(method, optimizer, norm * float("nan") if bad else norm, number)

    monkeypatch.setattr(loop, "update_if_finite", update)
    settings = ["checkpoint.every=100", "log.every=2", "log.health_every=2"]
    count = itertools.count()
    whole = pretrain(tiny_recipe(*settings, "runtime.bad_steps=9", out="whole", steps=8))
    count = itertools.count()
    with pytest.raises(UserError, match=r"\b3 steps in a row"):
        pretrain(tiny_recipe(*settings, "runtime.bad_steps=3", out="parts", steps=8))
    folder = RunFolder(whole.folder.root.with_name("parts"))
    assert checkpoints.steps(folder.checkpoints) == [6]
    assert_same_run(whole.folder, pretrain(tiny_recipe(*settings, out="parts", steps=8), resume=True).folder)


@pytest.mark.parametrize("lost", [{3}, set(range(8))])
def test_a_run_whose_volumes_are_lost_saves_its_steps(lost, tiny_recipe, monkeypatch):
    """Both where too many are excluded and where none is left to read; a second try loses nothing either."""
    read, step, away = Store._read, Trainer._train_step, set()

    def reading(self, k, *box):
        if k in away:
            raise ExcludedImageError("the server is away")
        return read(self, k, *box)

    def stepping(self, *work):
        step(self, *work)
        if self.position.step == 2:
            away.update(lost)

    settings = ["checkpoint.every=100", "runtime.lost_share=0"]
    whole = pretrain(tiny_recipe(*settings, out="whole", steps=6))
    monkeypatch.setattr(Store, "_read", reading)
    monkeypatch.setattr(Trainer, "_train_step", stepping)
    saved = []
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot be read|server is away"):
            pretrain(tiny_recipe(*settings, out="parts", steps=6), resume="auto")
        saved.append(checkpoints.steps(whole.folder.root.with_name("parts") / "checkpoints"))
    assert len(saved[0]) == 1
    assert saved[0] == saved[1] >= [2]
    monkeypatch.undo()
    assert_same_run(whole.folder, pretrain(tiny_recipe(*settings, out="parts", steps=6), resume=True).folder)


def test_a_checkpoint_contains_no_subjects_or_paths(tiny_recipe):
    outcome = pretrain(tiny_recipe(steps=2))
    text = repr({k: v for k, v in final_state(outcome.folder).items() if k not in {"method", "optimizer"}})
    assert "case0" not in text
    assert str(outcome.folder.root.parent) not in text


def test_the_run_folder_is_what_the_docs_say(tiny_recipe):
    folder = pretrain(tiny_recipe("log.tensorboard=true", steps=2)).folder
    names = {path.name.split(".")[0] for path in folder.root.iterdir() if path.name != LOCK}
    assert names == {"config", "log", "run", "events", "checkpoints", "pictures"}
    assert (folder.root / LOCK).read_text().strip("\0") == "", "it names this machine only while the run is at work"
    assert isinstance(RunFolder(folder.root).recipe().steps, int)


def test_two_runs_in_one_folder_are_rejected_and_one_killed_at_its_start_leaves_it_free(tiny_recipe, monkeypatch):
    monkeypatch.setattr("viewalign.utils.locks._PATIENCE", 0.3)
    recipe = tiny_recipe(steps=2)
    root = RunFolder.of(recipe).root
    root.mkdir(parents=True)
    with locked(root / LOCK):
        for resume in (False, "auto"):
            with pytest.raises(UserError, match=f"process {os.getpid()}"):
                pretrain(recipe, resume=resume)
    assert [path.name for path in root.iterdir()] == [LOCK]
    assert pretrain(recipe).finished


def run_command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "viewalign", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_finished_run_is_extended_under_the_schedule_of_the_new_length(tiny_recipe, caplog):
    pretrain(tiny_recipe("optim.warmup_steps=0", steps=2))
    longer = pretrain(tiny_recipe("optim.warmup_steps=0", steps=5), resume="auto")
    assert (longer.finished, longer.step) == (True, 5)
    whole = pretrain(tiny_recipe("optim.warmup_steps=0", out="whole", steps=5))
    rates = [
        {row["step"]: row["lr"] for row in read_log(each.folder.log) if row["kind"] == "train"}
        for each in (longer, whole)
    ]
    assert sorted(rates[0]) == [1, 2, 3, 4, 5]
    assert [rates[0][k] for k in (3, 4, 5)] == [rates[1][k] for k in (3, 4, 5)]
    assert rates[0][2] < rates[1][2]
    (event,) = [row for row in read_log(longer.folder.log) if row.get("event") == "extended"]
    assert event["step"] == 2
    assert event["reason"] in caplog.messages
    assert longer.folder.recipe().steps == 5
    with pytest.raises(UserError, match=r"steps=5.* 4"):
        pretrain(tiny_recipe("optim.warmup_steps=0", steps=4), resume="auto")


def test_a_batch_larger_than_the_data_and_small_volumes_are_warned_of(tiny_recipe, caplog):
    pretrain(tiny_recipe("batch=9", "views.patch_size=[24,16,16]", steps=1))
    assert "batch=9 is more than the number of training volumes (8)" in caplog.text
    assert "Smaller than views.patch_size=[24, 16, 16], and therefore padded: 8 of 8 volumes" in caplog.text
