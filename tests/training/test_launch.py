"""The start of a run loads nothing that it does not use."""

import subprocess
import sys

import pytest


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
