"""Memory that runs out in a run: one sentence with figures, and no process is left waiting for the one that failed."""

import subprocess
import sys
import threading

import pytest
import torch

from viewalign.errors import UserError
from viewalign.recipes.loading import load, to_yaml
from viewalign.training import cost, failures, simulation
from viewalign.training.cost import Remedy
from viewalign.training.failures import Failures, needs, shortage_reported
from viewalign.training.loop import Trainer
from viewalign.training.run import pretrain

OUT = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 39.49 GiB"


@pytest.fixture
def figures(monkeypatch):
    """Stand-ins for simulations, which take long."""
    found = [Remedy("runtime.recompute=true", 16_200_000_000), Remedy("runtime.accumulate=2", 14_100_000_000)]
    monkeypatch.setattr(simulation, "simulated_peak", lambda *_: 25_400_000_000)
    monkeypatch.setattr(cost, "remedies", lambda *_: [*found, Remedy("batch=2", 26_000_000_000)])


def test_the_sentence_names_the_request_and_what_needs_less(figures):
    recipe = load("cva-resenc-l", ["batch=8", "views.patch_size=128", "runtime.precision=bf16"])
    assert needs(recipe, 2) == (
        "Requested: 4 volumes × 2 views of 128×128×128 through resenc-l in bf16, which needs 25.4 GB (simulated; "
        "libraries need some more). With runtime.recompute=true 16.2 GB, runtime.accumulate=2 14.1 GB. runtime.* do "
        "not change the loss and may be changed with --resume."
    )


def test_a_simulation_that_fails_costs_the_figures_alone(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(simulation, "simulated_peak", fail)
    sentence = needs(load("mae-resenc-l", ["batch=2", "views.patch_size=128"]), 1)
    assert sentence.startswith("Requested: 2 volumes of 128×128×128 through resenc-l in auto. Settings that need less:")


def test_a_run_that_runs_out_of_memory_ends_in_a_sentence(figures, tiny_recipe, monkeypatch):
    def step(*_):
        raise torch.cuda.OutOfMemoryError(OUT)

    monkeypatch.setattr(Trainer, "_train_step", step)
    with pytest.raises(UserError, match=r"^Out of memory.*2\.50 GiB"):
        pretrain(tiny_recipe())


def test_other_errors_of_a_run_pass(tiny_recipe):
    with pytest.raises(ValueError, match="odd"), shortage_reported(tiny_recipe()):
        raise ValueError("odd")


SCRIPT = f"""
import sys, torch, viewalign
from viewalign.errors import UserError
from viewalign.utils.distributed import rank
from viewalign.training import cost, simulation
from viewalign.training.loop import Trainer

simulation.simulated_peak = lambda *_: 25_400_000_000
cost.remedies = lambda *_: [cost.Remedy("runtime.recompute=true", 16_200_000_000)]
plain = Trainer._train_step

def step(self, *given):
    if rank() == int(sys.argv[2]) and self.position.step == 1:
        raise (ValueError("odd number") if sys.argv[3:] else torch.cuda.OutOfMemoryError("{OUT}"))
    plain(self, *given)

Trainer._train_step = step
try:
    viewalign.pretrain(sys.argv[1])
except UserError as problem:
    print(f"RANK {{rank()}} {{problem}}", file=sys.stderr, flush=True)
    sys.exit(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_all_processes_end_when_one_runs_out_of_memory(victim, tiny_recipe, tmp_path):
    """The other one waits in a sum over processes for a gradient that will never come."""
    out = run_script(tiny_recipe, tmp_path, str(victim))
    assert "Traceback" not in out.stderr, out.stderr[-3000:]
    assert f"RANK {victim} Out of memory: 2.50 GiB could not be allocated" in out.stderr
    assert "With runtime.recompute=true 16.2 GB" in out.stderr
    if victim == 1:  # the first process ends after it, and says whose failure ended it; others end with the first
        assert "RANK 0 process 1 of 2: Out of memory: 2.50 GiB" in out.stderr


@pytest.mark.slow
def test_all_processes_end_when_one_raises_any_error_and_say_which(tiny_recipe, tmp_path):
    out = run_script(tiny_recipe, tmp_path, "1", "ordinary")
    assert "ValueError: odd number" in out.stderr
    assert "RANK 0 process 1 of 2: ValueError: odd number" in out.stderr, out.stderr[-3000:]


def run_script(tiny_recipe, tmp_path, *arguments):
    settings = ["runtime.device=cpu", "runtime.gpus=2", "runtime.threads=1"]
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_recipe(*settings, steps=4)))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run.yaml"), *arguments]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 1, out.stderr[-3000:]
    return out


class Announced:
    """A store in which a failure has been announced."""

    def check(self, _):
        return True

    def get(self, _):
        return b"process 1 of 2: Out of memory"


def test_a_process_that_waits_for_ever_is_ended(monkeypatch, capsys):
    """NCCL's waits do not see that another process has ended."""
    ended = threading.Event()
    monkeypatch.setattr(failures.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(failures, "_get_default_store", Announced)
    monkeypatch.setattr(failures, "_POLL", 0.01)
    monkeypatch.setattr(failures, "_PATIENCE", 0.01)
    monkeypatch.setattr(failures.os, "_exit", lambda code: ended.set() if code == 1 else None)
    with Failures() as others:
        assert ended.wait(60)
    assert others.sentence == "process 1 of 2: Out of memory"
    assert "viewalign: process 1 of 2: Out of memory" in capsys.readouterr().err


def test_a_store_without_an_announcement_is_asked_again_and_not_waited_for(monkeypatch):
    """Its `get` waits until somebody sets the key."""
    asked, waits = threading.Semaphore(0), []

    class Quiet:
        def check(self, _):
            asked.release()
            return False

        def get(self, _):
            waits.append(asked.release(3))
            return b""

    monkeypatch.setattr(failures.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(failures, "_get_default_store", Quiet)
    monkeypatch.setattr(failures, "_POLL", 0.01)
    with Failures() as others:
        assert all(asked.acquire(timeout=60) for _ in range(3))
    assert (others.sentence, waits) == ("", [])


def test_a_single_process_announces_nothing():
    with Failures() as others:
        others.announce("nobody hears this")
    assert others.sentence == ""
