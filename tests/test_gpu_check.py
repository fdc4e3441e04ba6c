"""The long check of a GPU, run on a CPU: every part does its work there, and the report keeps what went wrong."""

import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch

from viewalign.training import optimizers

KIT = Path(__file__).parents[1] / "benchmarks" / "gpu"
MODULES = [path.stem for path in KIT.glob("*.py")]


def run(out, *options, seconds=280):
    command = [sys.executable, "-W", "ignore", str(KIT / "check.py"), "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), json.loads((out / "gpu.json").read_text())


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_part_runs_on_a_cpu(tmp_path):
    last, report = run(tmp_path, "--budget", "1700", seconds=1790)
    assert last["name"] == "gpu"
    assert last["failed"] == [], {name: report["parts"][name]["trace"] for name in last["failed"]}
    assert last["ratio"] <= last["target"]
    names = {(row["part"], row["what"]) for row in report["checks"]}
    for part in ("resenc-xs-runs", "primus-xs-runs"):
        assert (part, "loss after resuming") in names
        assert (part, "deterministic: weights that differ") in names
    assert ("collectives", "loss of two processes against one") in names
    assert ("parity", "worst gradient") in names
    assert report["parts"]["resenc-l-compiled"]["graphs"]["stats"]["unique_graphs"] > 0
    assert "| resenc-l | 16³ |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.long
def test_a_part_can_be_selected_and_parts_that_need_a_gpu_say_it(tmp_path):
    last, report = run(tmp_path, "--parts", "facts", "out-of-memory")
    assert last["failed"] == []
    assert set(report["parts"]) == {"facts", "out-of-memory"}
    assert report["parts"]["facts"]["product_tflops"]["fp32"] > 0
    assert report["parts"]["facts"]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "out-of-memory was skipped" in (tmp_path / "gpu.md").read_text()
    assert str(tmp_path) not in (tmp_path / "gpu.json").read_text()


@pytest.fixture
def kit(monkeypatch):
    """The modules of the kit, whose names are too common to stay importable."""
    monkeypatch.syspath_prepend(str(KIT))
    kept = {name: sys.modules.pop(name, None) for name in MODULES}
    yield lambda name: importlib.import_module(name)
    for name, module in kept.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def session_of(kit, folder, budget=1000.0):
    return kit("session").Session(torch.device("cpu"), True, budget, folder)


def test_a_part_that_fails_is_recorded_and_one_without_time_is_skipped(kit, tmp_path, monkeypatch):
    check = kit("check")

    def broken(session):
        raise ValueError("this card is odd")

    monkeypatch.setitem(check.PARTS, "facts", (broken, 10))
    failed = check._run(session_of(kit, tmp_path), "facts")
    assert failed["error"] == "ValueError: this card is odd"
    assert "in broken" in failed["trace"]
    assert "left of the budget" in check._run(session_of(kit, tmp_path, budget=3.0), "facts")["skipped"]


@pytest.mark.parametrize(
    ("rows", "failed", "ratio"),
    [
        ([(1.0, 2.0), (3.0, 4.0)], False, 0.75),
        ([(0.0, 0.0)], False, 0.0),
        ([(1.0, 0.0)], False, 99.0),
        ([(float("nan"), 1.0)], False, 99.0),
        ([(1.0, 2.0)], True, 99.0),
        ([], False, 0.0),
    ],
)
def test_the_ratio_is_the_worst_of_all_checks(kit, rows, failed, ratio):
    checks = [{"value": value, "limit": limit} for value, limit in rows]
    assert kit("check")._ratio({"checks": checks}, failed) == ratio


def test_a_report_is_written_with_what_there_is(kit, tmp_path):
    check = kit("check")
    part = {"checks": [kit("session").check("loss", 0.5, 0.1)], "part_s": 1.0}
    report = {
        **{"date": "2026-01-01", "command": "c", "commit": "d", "viewalign": "e", "torch": "f", "device": "cuda"},
        "parts": {"resenc-xs-runs": part, "parity": {"error": "ValueError: no"}},
    }
    check._write(report, tmp_path)
    text = (tmp_path / "gpu.md").read_text()
    assert "| resenc-xs-runs: loss | 0.5 | 0.1 | **missed** |" in text
    assert "- parity failed: ValueError: no" in text
    assert json.loads((tmp_path / "gpu.json").read_text())["checks"][0]["part"] == "resenc-xs-runs"


def test_without_a_gpu_the_alternative_is_named(kit, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["check.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="--device cpu --tiny"):
        kit("check").main()
    assert not (tmp_path / "out").exists()


def test_wheels_are_those_of_the_tested_environment():
    text = (KIT / "wheels.sh").read_text()
    lock = (KIT.parents[1] / "requirements.lock").read_text().lower().replace("_", "-").splitlines()
    pinned = [word for word in text.replace("\\\n", " ").split() if "==" in word]
    assert len(pinned) > 10
    for one in pinned:
        assert one in lock


class Waiting(torch.nn.Linear):
    """A module that synchronises when its parameters are read."""

    def parameters(self, recurse=True):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("Synchronization debug mode does not detect all synchronizing operations", stacklevel=1)
        return super().parameters(recurse)


def test_synchronisations_are_counted_by_line(kit):
    recorded_waits = kit("inspection").recorded_waits
    with mock.patch.object(torch.cuda, "set_sync_debug_mode") as mode, recorded_waits(torch.device("cuda")) as found:
        optimizers.clip_gradients(Waiting(1, 1), None)
        optimizers.clip_gradients(Waiting(1, 1), None)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert mode.mock_calls == [mock.call("warn"), mock.call("default")]
    ours = {line: count for line, count in found.items() if line.startswith("training/optimizers.py:")}
    assert list(ours.values()) == [2]
    assert next(line for line in found if line not in ours).startswith("test_gpu_check.py:")
    assert sum(found.values()) == 3


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_synchronisations_on_a_cpu(kit):
    recorded_waits = kit("inspection").recorded_waits
    with pytest.warns(UserWarning, match="synchronizing"), recorded_waits(torch.device("cpu")) as found:
        optimizers.clip_gradients(Waiting(1, 1), None)
    assert not found


def test_profile(kit):
    with kit("inspection").profiled(torch.device("cpu")) as found:
        torch.randn(64, 64) @ torch.randn(64, 64)
    assert "aten::mm" in [name for _, _, name in found["top"]]
    assert 0 < found["busy_s"] < 60
