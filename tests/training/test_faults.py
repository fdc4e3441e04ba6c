"""Failures during training: reported in messages, without loss of work."""

import errno
import gc
import io
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from full_disk import no_room
from torch.utils.data import DataLoader

import viewalign
from viewalign.data.store import Store, store_from_arrays
from viewalign.errors import UserError
from viewalign.methods import health
from viewalign.methods.cva import ConsistentViewAlignment
from viewalign.training import data, pace, run
from viewalign.training.data import split_by_subject
from viewalign.training.logs import RunLog
from viewalign.training.loop import Trainer
from viewalign.training.run import pretrain
from viewalign.utils import console
from viewalign.utils.console import ProgressLine
from viewalign.views.samples import ArraySource, SampleReader
from viewalign.views.sampling import ViewSamplingConfig
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import RunFolder, read_log

pytestmark = pytest.mark.slow


def events(folder, name):
    return [row for row in read_log(folder.log) if row["kind"] == "event" and row["event"] == name]


def test_a_run_needs_a_store_and_a_folder(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match="store"):
        pretrain(tiny_recipe("data=''"))
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        pretrain(tiny_recipe(f"data={tmp_path}"))
    with pytest.raises(UserError, match="-o"):
        pretrain(tiny_recipe("out=''"))


def test_another_run_s_folder_is_left_alone(tiny_recipe, tmp_path):
    first = pretrain(tiny_recipe(steps=2))
    before = first.folder.log.read_text()
    with pytest.raises(UserError, match="--resume"):
        pretrain(tiny_recipe(steps=2))
    with pytest.raises(UserError, match=r"optim\.lr=0\.001.* 0\.5"):
        pretrain(tiny_recipe("optim.lr=0.5", steps=2), resume="auto")
    assert first.folder.log.read_text() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("do not lose me")
    with pytest.raises(UserError, match="full"):
        pretrain(tiny_recipe(out="full"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "file"))):
        pretrain(tiny_recipe(out="file"))


def test_a_run_whose_places_do_not_meet_is_rejected(tiny_recipe, monkeypatch):
    monkeypatch.setattr(run, "ramp_error", lambda views: 0.7)
    with pytest.raises(UserError, match=r"0\.7 voxels.*viewalign doctor"):
        pretrain(tiny_recipe())
    assert pretrain(tiny_recipe("geometry=latentcampus", out="released", steps=1)).finished


def test_contrast_needs_two_subjects(tiny_recipe, tmp_path):
    store_from_arrays(tmp_path / "one", {"only": np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)})
    with pytest.raises(UserError, match="two subjects"):
        pretrain(tiny_recipe(f"data={tmp_path / 'one'}"))


def test_a_full_disk_leaves_the_last_good_checkpoint(tiny_recipe, tmp_path, capfd):
    """A real limit on the size of files simulates a full disk: writing fails in the middle."""
    outcome = pretrain(tiny_recipe("checkpoint.every=2", steps=2))
    folder = outcome.folder.checkpoints
    good = checkpoints.load(checkpoints.path_of(folder, 2))
    with no_room(200_000), pytest.raises(OSError, match="File too large"):
        checkpoints.save(folder, 3, good)
    gc.collect()  # nothing of the writer that was broken off may spoil the next checkpoint
    checkpoints.save(folder, 4, good)
    gc.collect()
    assert checkpoints.load(checkpoints.path_of(folder, 4))["position"] == good["position"]
    shutil.rmtree(checkpoints.path_of(folder, 4))
    assert [path.name for path in folder.iterdir()] == ["step_00000002"]
    assert checkpoints.load(checkpoints.path_of(folder, 2))["position"] == good["position"]


def test_training_continues_after_a_checkpoint_that_could_not_be_written(tiny_recipe, monkeypatch, caplog):
    original, tried = torch.save, []

    def full_once(state, file):
        tried.append(state["step"])
        if len(tried) == 1:
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        original(state, file)

    monkeypatch.setattr(torch, "save", full_once)
    outcome = pretrain(tiny_recipe("checkpoint.every=2", steps=4))
    assert outcome.finished
    assert tried == [2, 4]
    assert checkpoints.steps(outcome.folder.checkpoints) == [4]
    assert not list(outcome.folder.checkpoints.glob(".writing*"))
    assert "No checkpoint could be written at step 2" in caplog.text
    assert events(outcome.folder, "checkpoint_failed")


def full_during(monkeypatch, first, last):
    """Let the disk be full while steps `first` to `last` are done and logged."""
    original = Trainer._train_step
    room = ExitStack()

    def stepping(self, *work):
        if self.position.step == first:
            room.enter_context(no_room())
        if self.position.step == last:
            room.close()
        original(self, *work)

    monkeypatch.setattr(Trainer, "_train_step", stepping)
    return room


def told_rows(outcome):
    rows = [row for row in read_log(outcome.folder.log) if row["kind"] in {"train", "health"}]
    return [
        {key: value for key, value in row.items() if key not in {"samples_per_second", "data_wait"}} for row in rows
    ]


def test_a_disk_that_is_full_for_a_while_costs_no_row_and_no_step(tiny_recipe, monkeypatch, caplog):
    """Log, checkpoint and pictures fail at steps 3 to 5 and are all there in the end; TensorBoard's file is left."""
    settings = ["checkpoint.every=2", "log.health_every=2", "log.tensorboard=true"]
    calm = pretrain(tiny_recipe(*settings, out="calm", steps=8))
    caplog.clear()
    full_during(monkeypatch, 2, 5)
    outcome = pretrain(tiny_recipe(*settings, steps=8))
    assert outcome.finished
    assert told_rows(outcome) == told_rows(calm)
    assert checkpoints.steps(outcome.folder.checkpoints) == [6, 8]
    assert [row["step"] for row in events(outcome.folder, "checkpoint_failed")] == [4]
    assert not [path for path in outcome.folder.root.rglob("*") if "writing" in path.name]
    told = caplog.text
    assert told.count("The log cannot be written") == 1
    assert told.count("TensorBoardTracker cannot be written") == 1
    assert "No checkpoint could be written at step 4" in told
    assert "pictures could not be written" in told


def test_a_disk_that_stays_full_ends_in_a_message_and_the_run_resumes_later(tiny_recipe, monkeypatch, caplog):
    calm = pretrain(tiny_recipe("checkpoint.every=2", out="calm", steps=8))
    with monkeypatch.context() as patch:
        room = full_during(patch, 5, None)
        with room, pytest.raises(UserError, match=r"last checkpoint.*space"):
            pretrain(tiny_recipe("checkpoint.every=2", steps=8))
    assert "The end of the log (" in caplog.text
    log = (RunFolder(calm.folder.root.parent / "run").log).read_text()
    assert log.endswith("}\n")  # no half of a row
    outcome = pretrain(tiny_recipe("checkpoint.every=2", steps=8), resume="auto")
    assert told_rows(outcome) == told_rows(calm)


def test_no_checkpoint_outlives_the_rows_before_it(tiny_recipe, monkeypatch):
    """Otherwise a run that is killed then would resume from it with a gap in its log."""
    monkeypatch.setattr(RunLog, "_write", lambda self: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="last checkpoint"):
        pretrain(tiny_recipe(steps=2))
    assert not list(RunFolder.of(tiny_recipe()).checkpoints.glob("step_*"))


def test_a_disk_that_is_full_at_the_start_is_a_sentence(tiny_recipe):
    with no_room(10), pytest.raises(UserError, match="disk is full"):
        viewalign.pretrain(tiny_recipe(steps=2))


class FullStream(io.StringIO):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))


def test_a_full_disk_under_the_output_of_a_run_does_not_end_it():
    """What a job prints is a file too, often on the same disk."""
    ProgressLine(FullStream(errno.ENOSPC)).say("step 1")


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_terminal_or_pipe_that_is_gone_does_not_end_a_run(number, monkeypatch):
    """As after `| head`, or where the terminal of a run under nohup was closed."""
    silenced = []
    monkeypatch.setattr(console, "_write_nowhere", lambda: silenced.append(True))
    monkeypatch.setattr(sys, "stderr", FullStream(number))
    progress = ProgressLine()
    for step in range(3):
        progress.say(f"step {step}")
        progress.show(f"step {step}", force=True)
    assert silenced == [True]


def test_a_loss_that_explodes_is_reported_while_the_run_continues(tiny_recipe, monkeypatch, caplog):
    original = ConsistentViewAlignment.forward

    def step(self, batch, return_diagnostics=False):
        result = original(self, batch, return_diagnostics)
        late = int(batch.sample[0]) // 4 >= 2
        result.logs["loss"] = result.logs["loss"] * (1e6 if late else 1.0)
        return result

    monkeypatch.setattr(ConsistentViewAlignment, "forward", step)
    pretrain(tiny_recipe(steps=4))
    told = [line for line in caplog.messages if "Training loss is" in line]
    assert len(told) == 1
    assert told[0].startswith("Step 3: ")
    assert "(bad)" in told[0]
    assert "Lower optim.lr" in told[0]


def test_many_skipped_steps_are_reported_while_the_run_continues(tiny_recipe, monkeypatch, caplog):
    break_loss(monkeypatch, {1})
    pretrain(tiny_recipe(steps=3))
    told = [line for line in caplog.messages if "Steps skipped is" in line]
    assert len(told) == 1
    assert told[0].startswith("Step 2: ")


def test_weights_that_are_not_finite_are_never_saved(tiny_recipe, monkeypatch):
    original = Trainer._train_step

    def stepping(self, *work):
        original(self, *work)
        if self.position.step == 3:
            next(self.method.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(Trainer, "_train_step", stepping)
    recipe = tiny_recipe("checkpoint.every=1", "log.health_every=100", steps=6)
    with pytest.raises(UserError, match=r"step 3.*not finite"):
        pretrain(recipe)
    assert checkpoints.steps(RunFolder.of(recipe).checkpoints) == [1, 2]


def test_volumes_of_one_value_are_rejected(tiny_recipe, tmp_path):
    store_from_arrays(tmp_path / "zeros", {f"s{k}": np.zeros((20, 20, 20), np.float32) for k in range(5)})
    with pytest.raises(UserError, match="one value"):
        pretrain(tiny_recipe(f"data={tmp_path / 'zeros'}", steps=2))


def test_a_rate_without_end_is_rejected(tiny_recipe):
    for value in (".inf", ".nan", "-.inf"):
        with pytest.raises(UserError, match=r"optim\.lr"):
            tiny_recipe(f"optim.lr={value}")


def test_a_warmup_longer_than_the_run_is_reported(tiny_recipe, caplog):
    pretrain(tiny_recipe("optim.warmup_steps=50", steps=1))
    assert "optim.warmup_steps=50 is longer than the run (steps=1)" in caplog.text


def test_a_gpu_that_is_not_there_is_a_sentence(tiny_recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"runtime\.device=cuda"):
        pretrain(tiny_recipe("runtime.device=cuda", steps=1))


def test_a_term_outside_the_loss_is_named_as_such(tiny_recipe):
    outcome = pretrain(tiny_recipe("objectives.consistency_weight=0", "log.every=4", steps=8))
    rows = [row for row in read_log(outcome.folder.log) if row["kind"] == "train"]
    assert all("consistency" not in row for row in rows)
    # Computed at two of the eight steps, for the pictures; the cosine of the same places says what it must be.
    for row in rows:
        assert row["consistency_not_in_loss"] == pytest.approx(2 * (1 - row["cosine"]), rel=1e-4)


def break_loss(monkeypatch, broken):
    original = ConsistentViewAlignment.forward

    def step(self, batch, return_diagnostics=False):
        result = original(self, batch, return_diagnostics)
        if int(batch.sample[0]) // 4 in broken:
            object.__setattr__(result, "loss", result.loss * float("nan"))
        return result

    monkeypatch.setattr(ConsistentViewAlignment, "forward", step)


def test_a_loss_that_is_not_finite_changes_nothing(tiny_recipe, monkeypatch):
    break_loss(monkeypatch, {1})
    outcome = pretrain(tiny_recipe("optim.warmup_steps=4", steps=5))
    state = checkpoints.load(checkpoints.path_of(outcome.folder.checkpoints, 5))
    assert (state["position"]["step"], state["position"]["updates"], state["position"]["skipped"]) == (5, 4, 1)
    assert all(torch.isfinite(value).all() for value in state["method"].values())
    assert len(events(outcome.folder, "skipped")[0]["volumes"]) == 4
    rates = [row["lr"] for row in read_log(outcome.folder.log) if row["kind"] == "train" and "lr" in row]
    assert rates == pytest.approx(
        [0.00025, 0.0005, 0.00075, 0.001]
    )  # the schedule counts updates, so the skipped step used none


def test_many_in_a_row_stop_the_run_and_name_the_volumes(tiny_recipe, monkeypatch):
    break_loss(monkeypatch, set(range(1, 99)))
    with pytest.raises(UserError, match=r"\b3 steps.*(arrays__arrays__case\d\d\S* \(number \d\),? ?){4}"):
        pretrain(tiny_recipe("runtime.bad_steps=3", steps=30))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_volume_that_is_not_finite_is_named(parts, tiny_recipe, monkeypatch):
    """One bad volume among eight: every step that holds it is skipped, and it alone is named."""
    original = Store.read

    def read(self, k, start=None, stop=None):
        return original(self, k, start, stop) * (np.float32("nan") if k == 3 else 1)

    monkeypatch.setattr(Store, "read", read)
    settings = [f"runtime.accumulate={parts}", "views.min_foreground=0"]
    outcome = pretrain(tiny_recipe(*settings, steps=6))
    told = events(outcome.folder, "skipped")
    assert 0 < len(told) < 6
    assert all(row["not_finite"] == [3] and len(row["volumes"]) == 4 for row in told)
    with pytest.raises(UserError, match=r"arrays__arrays__case03\S* \(number 3\)"):
        pretrain(tiny_recipe(*settings, "runtime.bad_steps=1", out="second", steps=12))


def test_a_collapse_is_reported_once_with_a_remedy(tiny_recipe, monkeypatch, caplog):
    monkeypatch.setattr(health, "measure", lambda features: {"effective_rank": 1.5, "feature_std": 0.9})
    pretrain(tiny_recipe("log.health_every=1", steps=3))
    told = caplog.text
    assert told.count("Effective rank is 1.5 (bad).") == 1
    assert "Lower optim.lr" in told
    assert "Feature standard deviation" not in told


def test_a_volume_that_became_unreadable_is_excluded(tiny_recipe, tiny_store, tmp_path, caplog):
    shutil.copytree(tiny_store, tmp_path / "copy")
    arrays = sorted((tmp_path / "copy").rglob("*.b2nd"))
    arrays[3].write_bytes(b"")
    outcome = pretrain(tiny_recipe(f"data={tmp_path / 'copy'}", "runtime.lost_share=0.2", steps=6))
    told = events(outcome.folder, "unreadable")
    assert [row["volume"] for row in told] == [3]
    assert "is excluded" in caplog.text
    arrays[5].unlink()
    with pytest.raises(UserError, match=r"2 of 8 volumes.*lost_share"):
        pretrain(tiny_recipe(f"data={tmp_path / 'copy'}", "runtime.lost_share=0.2", out="second", steps=12))


@pytest.fixture
def many(tmp_path):
    """A store of enough subjects to hold some out."""
    rng = np.random.default_rng(0)
    arrays = {f"s{k:02d}": rng.normal(size=(20, 20, 20)).astype(np.float32) for k in range(24)}
    store_from_arrays(tmp_path / "many", arrays)
    return tmp_path / "many"


def test_a_held_out_volume_that_cannot_be_read_is_reported(tiny_recipe, many):
    lost = int(split_by_subject(np.arange(24), 0.01, 0).validation[0])
    sorted((many / "volumes").rglob("*.b2nd"))[lost].write_bytes(b"")
    settings = [f"data={many}", "validate.every=2", "validate.batches=3", "runtime.lost_share=0.2"]
    told = events(pretrain(tiny_recipe(*settings, steps=2)).folder, "unreadable")
    assert [row["volume"] for row in told] == [lost]


class Deadly(ArraySource):
    """Kills the worker that reads it, the first time."""

    def __init__(self, mark):
        super().__init__(np.zeros((20, 20, 20)))
        self._mark = mark

    def __len__(self):
        return 8

    def read(self, k, start, stop):
        if k == 5 and not self._mark.exists():
            self._mark.write_text("")
            import os

            os._exit(1)
        return super().read(k, start, stop)


def test_a_worker_that_dies_is_replaced_and_no_sample_is_lost(tmp_path):
    every = np.arange(8)
    reader = SampleReader(Deadly(tmp_path / "mark"), every, every, ViewSamplingConfig((16, 16, 16)), 4, 0)
    steps = list(data.batches(reader, 2, 9, 4, workers=1, pin=False))
    assert (tmp_path / "mark").exists()
    assert [[sample.index for sample in step] for step in steps] == [[s * 4 + k for k in range(4)] for s in range(2, 9)]


@pytest.mark.parametrize("problem", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "gone")])
def test_lost_connections_are_repaired_and_repeated_losses_reported(problem, monkeypatch):
    """Where a worker dies while a batch is taken out of its memory, and its end is not known yet (seen in the soak)."""

    class Lost(DataLoader):
        good = 1

        def __iter__(self):
            for number, one in enumerate(super().__iter__()):
                if number == self.good:
                    raise problem
                yield one

    monkeypatch.setattr(data, "DataLoader", Lost)
    monkeypatch.setattr(data, "_REVIVALS", 2)
    every = np.arange(8)
    reader = SampleReader(
        ArraySource(np.zeros((20, 20, 20))), every[:1], every[:1], ViewSamplingConfig((16, 16, 16)), 1, 0
    )
    assert [step[0].index for step in data.batches(reader, 0, 6, 1, workers=1, pin=False)] == list(range(6))
    monkeypatch.setattr(Lost, "good", 0)
    with pytest.raises(UserError, match=r"3 times.*step 1\b.*runtime\.workers"):
        next(data.batches(reader, 0, 6, 1, workers=1, pin=False))
    with pytest.raises(type(problem)):
        next(data.batches(reader, 0, 6, 1, workers=0, pin=False))


class Unsendable:
    """What a worker cannot pass on, as a tensor for which /dev/shm has no space."""

    def __reduce__(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class UnsendableReader(SampleReader):
    def __getitem__(self, number):
        return Unsendable()


def test_a_batch_that_cannot_be_passed_on_ends_the_run_with_its_cause(monkeypatch, capfd):
    """Python drops it and prints a traceback; the run waited for it for half an hour."""
    monkeypatch.setattr(data, "_REVIVALS", 1)
    monkeypatch.setattr(data, "_POLL", 1)
    every = np.arange(4)
    source = ArraySource(np.zeros((20, 20, 20)))
    reader = UnsendableReader(source, every[:1], every[:1], ViewSamplingConfig((16, 16, 16)), 1, 0)
    with pytest.raises(UserError, match=r"2 times.*/dev/shm.*runtime\.workers"):
        next(data.batches(reader, 0, 6, 1, workers=1, pin=False))
    assert os.strerror(errno.ENOSPC) in capfd.readouterr().err


def test_a_program_around_a_run_still_gets_signals_of_its_children(tmp_path):
    """Whoever embeds a run may have a handler of SIGCHLD: it hears during and after, and gets its place back."""
    heard = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: heard.append(number))
    try:
        every = np.arange(8)
        source = ArraySource(np.zeros((20, 20, 20)))
        reader = SampleReader(source, every[:1], every[:1], ViewSamplingConfig((16, 16, 16)), 1, 0)
        DataLoader([0], num_workers=1).__iter__()._shutdown_workers()  # torch puts its own before it, once a process
        outside = signal.getsignal(signal.SIGCHLD)
        reading = data.batches(reader, 0, 4, 1, workers=1, pin=False)
        next(reading)
        heard.clear()
        subprocess.run([sys.executable, "-c", ""], check=True)
        assert heard
        assert len(list(reading)) == 3
        assert signal.getsignal(signal.SIGCHLD) is outside
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_volumes_smaller_than_a_view_are_counted(tiny_recipe):
    outcome = pretrain(tiny_recipe("views.patch_size=[24,24,24]", steps=2))
    row = read_log(outcome.folder.log)[0]
    assert (row["volumes"], row["smaller_than_view"]) == (8, 8)
    assert row["alignment_error"] < 1e-3


def test_best_is_the_lowest_validation_loss_and_is_kept(tiny_recipe, many, monkeypatch):
    original, losses = Trainer._evaluate, iter([3.0, 1.0, 2.0])

    def evaluated(self, batch, return_diagnostics):
        found = original(self, batch, return_diagnostics)
        return found if return_diagnostics else replace(found, logs={"loss": torch.tensor(next(losses))})

    monkeypatch.setattr(Trainer, "_evaluate", evaluated)
    settings = [f"data={many}", "validate.every=2", "validate.batches=1", "checkpoint.keep_last=1"]
    outcome = pretrain(tiny_recipe(*settings, steps=6))
    rows = [row for row in read_log(outcome.folder.log) if row["kind"] == "validation"]
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 3.0), (4, 1.0), (6, 2.0)]
    assert checkpoints.steps(outcome.folder.checkpoints) == [4, 6]


def test_a_best_checkpoint_that_cannot_be_written_leaves_the_one_before(tiny_recipe, many, monkeypatch):
    evaluated, losses, save = Trainer._evaluate, iter([3.0, 1.0, 2.0, 4.0]), checkpoints.save

    def evaluate(self, batch, return_diagnostics):
        found = evaluated(self, batch, return_diagnostics)
        return found if return_diagnostics else replace(found, logs={"loss": torch.tensor(next(losses))})

    def full_at_step_4(folder, step, *rest):
        if step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(folder, step, *rest)

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    monkeypatch.setattr(checkpoints, "save", full_at_step_4)
    settings = [f"data={many}", "validate.every=2", "validate.batches=1", "checkpoint.keep_last=1"]
    outcome = pretrain(tiny_recipe(*settings, steps=8))
    assert checkpoints.steps(outcome.folder.checkpoints) == [6, 8]
    position = checkpoints.load(checkpoints.path_of(outcome.folder.checkpoints, 6))["position"]
    assert (position["best_step"], position["best_loss"]) == (6, 2.0)


def test_checkpoints_are_kept_permanently_at_every_multiple(tiny_recipe):
    settings = ["checkpoint.every=4", "checkpoint.keep_every=3", "checkpoint.keep_last=1"]
    assert checkpoints.steps(pretrain(tiny_recipe(*settings, steps=10)).folder.checkpoints) == [3, 6, 9, 10]


def test_a_bad_measure_of_a_log_row_is_reported_once_it_can_be_evaluated(tiny_recipe, monkeypatch, caplog):
    original = ConsistentViewAlignment.forward

    def step(self, batch, return_diagnostics=False):
        result = original(self, batch, return_diagnostics)
        result.logs["cosine"] = result.logs["cosine"] * 0
        return result

    monkeypatch.setattr(ConsistentViewAlignment, "forward", step)
    monkeypatch.setattr(health, "EARLY_STEPS", 3)
    pretrain(tiny_recipe(steps=5))
    told = [line for line in caplog.messages if line.startswith("Step ") and "cosine" in line]
    assert len(told) == 1
    assert told[0].startswith("Step 3: ")


def test_validations_are_in_the_time_left_but_not_in_the_rate(tiny_recipe, many, monkeypatch):
    """A validation of 1,000 s after each of eight steps, by a clock that is put forward."""
    clock, ahead = time.perf_counter, []
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: clock() + 1000 * len(ahead)))
    monkeypatch.setattr(Trainer, "_validate", lambda self, batches: ahead.append(1))
    shown = []
    monkeypatch.setattr(ProgressLine, "show", lambda self, text, force=False: shown.append(text))
    outcome = pretrain(tiny_recipe(f"data={many}", "validate.every=1", "log.every=2", steps=8))
    rates = [row["samples_per_second"] for row in read_log(outcome.folder.log) if row["kind"] == "train"]
    assert all(rate > 4 / 100 for rate in rates)
    assert [text.partition("data wait")[2].split()[1] for text in shown] == ["50", "50", "27", "0"]


def test_nothing_to_load_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        RunFolder(tmp_path).recipe()
    assert checkpoints.load_newest(tmp_path / "none") is None
    with pytest.raises(UserError):
        Store.open(tmp_path)


def test_a_reader_that_dies_in_the_middle_of_a_step_is_replaced(tiny_recipe, monkeypatch):
    """Schedulers end whole groups of processes, and out-of-memory killers choose any: a step must not break off."""
    original, killed = Trainer._train_step, []

    def stepping(self, *work):
        children = multiprocessing.active_children()
        if self.position.step == 1 and children:
            killed.append(children[0].pid)
            os.kill(children[0].pid, signal.SIGKILL)
            time.sleep(0.5)
        original(self, *work)

    calm = pretrain(tiny_recipe(out="calm", steps=8))
    monkeypatch.setattr(Trainer, "_train_step", stepping)
    outcome = pretrain(tiny_recipe("runtime.workers=1", steps=8))
    assert killed
    assert outcome.finished
    rows = [[row["loss"] for row in read_log(run.folder.log) if row["kind"] == "train"] for run in (calm, outcome)]
    assert rows[0] == rows[1]
