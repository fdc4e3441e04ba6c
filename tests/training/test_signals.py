"""Signals end a run in order, wherever it is, and one that hangs is ended with its last checkpoint named."""

import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import viewalign
from viewalign.cli.main import run as command
from viewalign.data.store import store_from_arrays
from viewalign.errors import StoppedError
from viewalign.recipes.loading import to_yaml
from viewalign.training import data
from viewalign.training.loop import Trainer
from viewalign.training.run import pretrain
from viewalign.training.signals import StopRequest, StopWaitingError
from viewalign.weights import checkpoints

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_the_step_is_finished_and_saved(number, tiny_recipe, monkeypatch):
    original = Trainer._train_step

    def stepping(self, *work):
        original(self, *work)
        if self.position.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_train_step", stepping)
    inherited = signal.signal(number, signal.default_int_handler)  # nohup starts programs that ignore SIGHUP
    try:
        outcome = pretrain(tiny_recipe("checkpoint.every=100", steps=50))
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, inherited)
    assert (outcome.step, outcome.signal, outcome.exit_code) == (2, number, 128 + number)
    assert checkpoints.steps(outcome.folder.checkpoints) == [2]


def stop_after(step, number, monkeypatch):
    """Send this process a signal at the end of a step."""
    original = Trainer._train_step

    def stepping(self, *work):
        original(self, *work)
        if self.position.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_train_step", stepping)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_call_from_python_that_is_stopped_saves_and_raises(number, tiny_recipe, tmp_path, monkeypatch):
    """Nothing after it in a script or notebook continues with a run that is not finished."""
    with monkeypatch.context() as patched:
        stop_after(2, number, patched)
        with pytest.raises(KeyboardInterrupt) as stopped:
            viewalign.pretrain(tiny_recipe(steps=4))
    assert isinstance(stopped.value, StoppedError)
    assert (stopped.value.result.step, stopped.value.code) == (2, 128 + number)
    assert str(stopped.value) == f"{tmp_path / 'run'} is saved at step 2 of 4; resume=True continues it."
    assert viewalign.pretrain(tiny_recipe(steps=4), resume=True).finished


def test_a_signal_in_the_last_step_is_raised_although_the_run_is_finished(tiny_recipe, monkeypatch):
    stop_after(2, signal.SIGINT, monkeypatch)
    with pytest.raises(StoppedError) as stopped:
        viewalign.pretrain(tiny_recipe(steps=2))
    assert (stopped.value.result.finished, stopped.value.code) == (True, 0)


def test_the_command_prints_how_a_stopped_run_is_resumed(tiny_recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text(to_yaml(tiny_recipe(steps=4)))
    stop_after(2, signal.SIGINT, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        command(["pretrain", str(tmp_path / "mine.yaml")])
    assert ended.value.code == 130
    out = capsys.readouterr().out
    assert "Stopped and saved at step 2 of 4" in out
    assert f"viewalign pretrain {tmp_path / 'run' / 'config.yaml'} --resume" in out


def test_a_wait_for_data_is_interrupted_and_the_run_saved(tiny_recipe, monkeypatch):
    def reading(*_, **__):
        for step, samples in enumerate(plain(*_, **__)):
            if step == 2:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                time.sleep(60)  # a file system that does not answer
            yield samples

    plain = data.batches
    monkeypatch.setattr(data, "batches", reading)
    begin = time.monotonic()
    outcome = pretrain(tiny_recipe("checkpoint.every=100", steps=50))
    assert time.monotonic() - begin < 50
    assert (outcome.step, outcome.exit_code) == (2, 143)
    assert checkpoints.steps(outcome.folder.checkpoints) == [2]


def test_a_signal_before_a_wait_ends_it_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopWaitingError):
            next(stop.items(iter(())))


def test_what_is_ignored_stays_ignored():
    """`nohup` starts a command with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


HANGING = """
import ctypes, os, signal, sys
from viewalign.training import signals
signals._PATIENCE = {"SIGTERM": 0.2}
signals._LAST_PATIENCE = 0.2
with signals.StopRequest(last_words=lambda: "The newest checkpoint is that of step 7"):
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
    ctypes.CDLL(None).sleep(60)  # outside Python, as a collective waits
"""


def test_a_run_that_hangs_outside_python_is_ended_with_its_last_checkpoint_named():
    command = [sys.executable, "-c", HANGING, str(int(signal.SIGTERM))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: the run does not respond" in done.stderr
    assert "step 7" in done.stderr


def test_only_signals_that_stop_a_run_are_received():
    """The end of a reader wakes up the thread too."""
    request = StopRequest()
    request._before = {signal.SIGTERM: signal.SIG_DFL}
    reading, writing = socket.socketpair()
    writing.send(bytes([signal.SIGCHLD, signal.SIGTERM, signal.SIGCHLD]))
    assert request._received(reading, 60) == signal.SIGTERM
    with pytest.raises(TimeoutError):
        request._received(reading, 0.01)
    writing.close()
    assert request._received(reading, 60) is None


def test_long_steps_are_waited_for(monkeypatch):
    monkeypatch.setattr("viewalign.training.signals._PATIENCE", {"SIGTERM": 0.1})
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with StopRequest() as stop:
        stop.beat()
        stop._longest = 30.0
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert stop.signal == signal.SIGTERM
    assert not ended


def test_a_checkpoint_that_is_written_slowly_is_waited_for(tiny_recipe, monkeypatch):
    """A slow disk takes longer than the patience for a step, but each write is a sign of life."""
    ended, begun, write = [], [], checkpoints._DeferredErrors.write

    def slow(self, content):
        if not begun:
            begun.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)
        if time.monotonic() - begun[0] < 2.0:
            time.sleep(0.05)
        return write(self, content)

    monkeypatch.setattr("viewalign.training.signals._PATIENCE", {"SIGTERM": 0.6})
    monkeypatch.setattr("viewalign.training.signals._STEPS", 0)
    monkeypatch.setattr(checkpoints._DeferredErrors, "write", slow)
    monkeypatch.setattr(os, "_exit", ended.append)
    outcome = pretrain(tiny_recipe("checkpoint.every=1", steps=50))
    assert (outcome.step, outcome.exit_code, ended) == (1, 143, [])
    assert checkpoints.steps(outcome.folder.checkpoints) == [1]


def test_a_long_validation_is_no_hang(tiny_recipe, tmp_path, monkeypatch):
    """Its batches are signs of life; the run ends after it, saved."""
    ended, evaluate = [], Trainer._evaluate

    def slow(self, batch, **more):
        if not self.method.training:
            if not ended:
                ended.append("begun")
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        return evaluate(self, batch, **more)

    monkeypatch.setattr("viewalign.training.signals._PATIENCE", {"SIGTERM": 0.8})
    monkeypatch.setattr("viewalign.training.signals._STEPS", 0)
    monkeypatch.setattr(Trainer, "_evaluate", slow)
    monkeypatch.setattr(os, "_exit", ended.append)
    arrays = {f"s{k}": np.random.default_rng(k).normal(size=(20, 20, 20)).astype(np.float32) for k in range(20)}
    store_from_arrays(tmp_path / "many", arrays)
    outcome = pretrain(tiny_recipe(f"data={tmp_path / 'many'}", "validate.every=1", "validate.batches=5", steps=50))
    assert (outcome.step, outcome.exit_code, ended) == (1, 143, ["begun"])


def test_work_of_any_length_and_a_wait_for_another_process_are_no_hang(monkeypatch):
    monkeypatch.setattr("viewalign.training.signals._PATIENCE", {"SIGTERM": 0.1})
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with StopRequest() as stop:
        with stop.patience():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(1.5)
        assert not ended
        time.sleep(1.5)
        assert ended


def test_sockets_of_readers_have_addresses_that_are_short_enough(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    config = dict(multiprocessing.process.current_process()._config)
    config.pop("tempdir", None)
    monkeypatch.setattr(multiprocessing.process.current_process(), "_config", config)
    data.use_short_socket_folder()
    address = multiprocessing.connection.arbitrary_address("AF_UNIX")
    assert len(address) < 104
    assert Path(address).parent.is_dir()
    Path(address).parent.rmdir()


def test_no_batch_within_the_limit_is_a_sentence(monkeypatch):
    class Silent:
        def __next__(self):
            raise RuntimeError("DataLoader timed out after 10 seconds")

    now = iter(range(0, 10_000, 400))
    monkeypatch.setattr(data.time, "monotonic", lambda: next(now))
    with pytest.raises(data.UserError, match=r"1800 s.*step 4"):
        next(data._within_limit(Silent(), 3))
    assert next(now) == 2400, "asked again until then"
