"""The start of a run loads nothing that it does not use, and errors of collectives are told apart from others."""

import subprocess
import sys

import pytest

from viewalign.errors import UserError
from viewalign.training import launch
from viewalign.training.failures import Failures
from viewalign.weights.run_folder import RunFolder


@pytest.mark.long
def test_a_run_loads_neither_metrics_nor_timm_and_metrics_can_be_had_after_it():
    code = (
        "import sys, viewalign.training.run as run\n"
        "heavy = ('torchmetrics', 'transformers', 'matplotlib', 'timm', 'torchvision')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "import torchmetrics\n"
        "print(torchmetrics.__name__)\n"
    )
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == ["[]", "torchmetrics"]


@pytest.mark.long
def test_metrics_that_were_there_stay():
    code = "import sys, torchmetrics, viewalign.training.launch\nassert sys.modules['torchmetrics'] is torchmetrics\n"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize(
    ("processes", "message", "sentence", "told"),
    [
        (2, "Connection closed by peer [127.0.0.1]", "", "Another process of this run ended"),
        (2, "NCCL error", "process 1 of 2: Out of memory", "process 1 of 2: Out of memory"),
        (2, "shapes do not match", "", None),
        (1, "Connection closed by peer [127.0.0.1]", "", None),
    ],
)
def test_only_a_collective_that_lost_a_process_is_reported_as_one(
    processes, message, sentence, told, tmp_path, monkeypatch
):
    failures = Failures()
    failures.sentence = sentence
    monkeypatch.setattr(launch.distributed, "world_size", lambda: processes)
    with (
        pytest.raises(UserError if told else RuntimeError) as raised,
        launch.report_lost_processes(RunFolder(tmp_path), failures),
    ):
        raise RuntimeError(message)
    assert str(raised.value).startswith(told or message)
    assert isinstance(raised.value, UserError) == bool(told)
