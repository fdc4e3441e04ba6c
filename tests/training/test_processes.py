"""Two processes with half of a batch each are one process with all of it."""

import subprocess
import sys

import pytest

from viewalign.errors import UserError
from viewalign.recipes.loading import to_yaml
from viewalign.training.folder import RunFolder
from viewalign.training.launch import launch
from viewalign.training.logs import read_log


def losses(folder, name="loss"):
    return [row[name] for row in read_log(folder.log) if row["kind"] == "train"]


def run_cli(tmp_path, recipe, name):
    file = tmp_path / f"{name}.yaml"
    file.write_text(to_yaml(recipe))
    command = [sys.executable, "-m", "viewalign", "pretrain", str(file)]
    out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert out.returncode == 0, out.stderr[-3000:]
    return RunFolder(tmp_path / name), out


CASES = [
    ("cva-resenc-xs", "fp32", 5, 1e-5),
    ("cva-primus-xs", "fp32", 5, 1e-5),
    pytest.param("cva-resenc-xs", "fp64", 20, 1e-8, marks=pytest.mark.long),
    pytest.param("cva-primus-xs", "fp64", 20, 1e-8, marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "precision", "steps", "tolerance"), CASES)
def test_two_processes_equal_one(recipe, precision, steps, tolerance, tiny_recipe, tmp_path):
    """All terms, with BatchNorm heads and NT-Xent over both processes.

    SGD, because Adam divides rounding errors by gradients that are as small; 24³, because InstanceNorm over the eight
    voxels that 16³ leaves at the bottom magnifies them.
    """
    runs = []
    for world in (1, 2):
        settings = ["runtime.accelerator=cpu", f"runtime.devices={world}", "runtime.threads=1", "optim.name=sgd"]
        settings += [f"runtime.precision={precision}", "optim.lr=0.0005", "optim.momentum=0.9", "views.size=[24,24,24]"]
        made = tiny_recipe(*settings, recipe=recipe, out=f"w{world}", steps=steps)
        runs.append(run_cli(tmp_path, made, f"w{world}")[0])
    for term in ("loss", "reconstruction", "consistency", "contrastive", "contrast_accuracy"):
        one, two = (losses(run, term) for run in runs)
        assert len(one) == len(two) == steps
        assert two == pytest.approx(one, rel=tolerance), term


def test_a_batch_that_does_not_divide_is_refused(tiny_recipe):
    with pytest.raises(UserError, match=r"batch=4 does not divide over 3 processes .* batch=3 or 6"):
        launch(tiny_recipe("runtime.devices=3", "runtime.accelerator=cpu"))


def test_a_device_that_is_not_there_is_a_sentence(tiny_recipe):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"runtime\.accelerator=cuda"):
        launch(tiny_recipe("runtime.accelerator=cuda"))
