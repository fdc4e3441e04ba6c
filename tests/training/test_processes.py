"""Two processes with half of a batch each are one process with all of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from viewalign.errors import UserError
from viewalign.recipes.loading import to_yaml
from viewalign.training.launch import launch
from viewalign.training.run import pretrain
from viewalign.weights import checkpoints
from viewalign.weights.run_folder import RunFolder, read_log


def losses(folder, name="loss"):
    return [row[name] for row in read_log(folder.log) if row["kind"] == "train"]


def run_cli(tmp_path, recipe, name):
    file = tmp_path / f"{name}.yaml"
    file.write_text(to_yaml(recipe))
    command = [sys.executable, "-m", "viewalign", "pretrain", str(file)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-3000:]
    return RunFolder(tmp_path / name), out


WHOLE = "masking.whole=0.5"  # a process may have whole views only, or none
BATCH = ["objectives.consistency=nt_xent", "objectives.negatives=batch"]
PARTS = ["batch=8", "runtime.accumulate=2"]
CASES = [
    # Not float32: how its rounding grows over five steps differs with a CPU's kernels (2.5e-5 was seen).
    pytest.param("cva-resenc-xs", "fp64", 3, 1e-8, [], marks=pytest.mark.long),
    ("cva-primus-xs", "fp64", 3, 1e-8, ["network.drop_path=0.3"]),
    pytest.param("cva-resenc-xs", "fp64", 20, 1e-8, [], marks=pytest.mark.long),
    pytest.param("cva-primus-xs", "fp64", 20, 1e-8, ["network.drop_path=0.3"], marks=pytest.mark.long),
    pytest.param("cva-primus-xs", "fp64", 10, 1e-8, PARTS, marks=pytest.mark.long),
    pytest.param("cva-primus-xs", "fp64", 10, 1e-8, [*PARTS, WHOLE], marks=pytest.mark.long),
    pytest.param("cva-primus-xs", "fp64", 3, 1e-8, BATCH, marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "precision", "steps", "tolerance", "further"), CASES)
def test_two_processes_equal_one(recipe, precision, steps, tolerance, further, tiny_recipe, tmp_path):
    """All terms, with BatchNorm heads, NT-Xent over both processes and stochastic depth.

    SGD, because Adam divides rounding errors by gradients that are as small; 24³, because InstanceNorm over the eight
    voxels that 16³ leaves at the bottom magnifies them.
    """
    runs = []
    for world in (1, 2):
        settings = ["runtime.device=cpu", f"runtime.gpus={world}", "runtime.threads=1", "optim.name=sgd"]
        settings += [
            f"runtime.precision={precision}",
            "optim.lr=0.0005",
            "optim.momentum=0.9",
            "views.patch_size=[24,24,24]",
        ]
        made = tiny_recipe(*settings, *further, recipe=recipe, out=f"w{world}", steps=steps)
        if world == 1:
            runs.append(pretrain(made).folder)
        else:
            run, out = run_cli(tmp_path, made, f"w{world}")
            assert out.stdout.count("Done:") == 1  # only the first process reports it
            runs.append(run)
    for term in ("loss", "reconstruction", "consistency", "contrastive", "contrast_accuracy"):
        one, two = (losses(run, term) for run in runs)
        assert len(one) == len(two) == steps
        assert two == pytest.approx(one, rel=tolerance), term


@pytest.mark.long
def test_the_group_is_taken_apart_before_python_ends(tiny_recipe, tmp_path):
    """Left to the interpreter's end it ended a finished run with SIGABRT, once in a while."""
    settings = ["runtime.device=cpu", "runtime.gpus=2", "runtime.threads=1"]
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_recipe(*settings, steps=2)))
    (tmp_path / "script.py").write_text(
        "import sys, torch, viewalign\n"
        "run = viewalign.pretrain(sys.argv[1])\n"
        "sys.stdout.write(f'{run.first} {run.finished} {torch.distributed.is_initialized()}\\n')\n"
    )
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run.yaml")]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr[-3000:]
    assert sorted(out.stdout.splitlines()) == ["False True False", "True True False"]


@pytest.mark.long
def test_what_any_process_cannot_read_is_excluded_and_reported(tiny_recipe, tiny_store, tmp_path):
    """Two damaged volumes: whichever process reads them, both are in the log, and their share ends all processes."""
    shutil.copytree(tiny_store, tmp_path / "copy")
    for array in sorted((tmp_path / "copy").rglob("*.b2nd"))[3:5]:
        array.write_bytes(b"")
    settings = [f"data={tmp_path / 'copy'}", "runtime.device=cpu", "runtime.gpus=2", "runtime.threads=1"]
    folder, _ = run_cli(tmp_path, tiny_recipe(*settings, "runtime.lost_share=0.3", steps=6), "run")
    told = [row["volume"] for row in read_log(folder.log) if row.get("event") == "unreadable"]
    assert sorted(told) == [3, 4]
    file = tmp_path / "strict.yaml"
    file.write_text(to_yaml(tiny_recipe(*settings, "runtime.lost_share=0.1", out="strict", steps=50)))
    command = [sys.executable, "-m", "viewalign", "pretrain", str(file)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert "cannot be read, more than runtime.lost_share=0.1 allows" in out.stderr
    assert "Traceback" not in out.stderr
    assert checkpoints.steps(tmp_path / "strict" / "checkpoints"), "both processes save what they have before they end"


def wait_for(happened, seconds=600):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def gone(process):
    """Return whether a process has ended, or is a zombie."""
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes through Linux's /proc")
@pytest.mark.parametrize("victim", ["first", pytest.param("second", marks=pytest.mark.long)])
def test_a_dying_process_ends_all_and_the_last_checkpoint_holds(victim, tiny_recipe, tmp_path):
    settings = ["runtime.device=cpu", "runtime.gpus=2", "runtime.threads=1", "checkpoint.every=1"]
    recipe = tiny_recipe(*settings, steps=100_000)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(recipe))
    command = [sys.executable, "-m", "viewalign", "pretrain", str(file)]
    main = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = RunFolder(tmp_path / "run").checkpoints
    try:
        wait_for(lambda: len(checkpoints.steps(folder)) > 0)
        child = int(Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()[0])
        os.kill(child if victim == "second" else main.pid, signal.SIGKILL)
        wait_for(lambda: gone(child) and gone(main.pid))
        _, told = main.communicate(timeout=600)
    finally:
        main.kill()
    assert main.returncode != 0
    assert "Another process of this run ended" in told or "ends too" in told or main.returncode == -signal.SIGKILL
    assert "Traceback" not in told
    state = checkpoints.load_newest(folder)
    assert state["position"]["step"] >= 1


SLOW = """
import time
from viewalign.cli.main import run
from viewalign.weights import checkpoints

plain = checkpoints.save

def save(folder, step, *rest):
    time.sleep(8)  # the launcher looks every five seconds whether a process has failed
    return plain(folder, step, *rest)

checkpoints.save = save
if __name__ == "__main__":
    run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param("group", 130, marks=pytest.mark.long)]
)
def test_a_stopped_run_writes_its_last_checkpoint_however_long_it_takes(number, code, tiny_recipe, tmp_path):
    """SIGTERM to the first process, or Ctrl-C in a terminal, which all processes receive."""
    settings = ["runtime.device=cpu", "runtime.gpus=2", "runtime.threads=1", "checkpoint.every=100000"]
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_recipe(*settings, steps=100_000)))
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py"), "pretrain", str(tmp_path / "run.yaml")]
    pipe = subprocess.PIPE
    main = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    folder = RunFolder(tmp_path / "run")
    try:
        wait_for(lambda: losses(folder))
        if number == "group":
            os.killpg(main.pid, signal.SIGINT)
        else:
            main.send_signal(number)
        said, told = main.communicate(timeout=600)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(main.pid, signal.SIGKILL)
    assert main.returncode == code, told[-3000:]
    (step,) = checkpoints.steps(folder.checkpoints)
    assert f"Stopped and saved at step {step}" in said


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes through Linux's /proc")
def test_a_first_process_that_dies_while_the_others_come_up_leaves_none(tiny_recipe, tmp_path):
    """The others would wait half an hour for it, each with its memory or GPU."""
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(tiny_recipe("runtime.device=cpu", "runtime.gpus=2", steps=100_000)))
    main = subprocess.Popen(
        [sys.executable, "-m", "viewalign", "pretrain", str(file)], stderr=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{main.pid}/task/{main.pid}/children")
    others: list[int] = []

    def there():
        """Find the other process of the run: not what an import calls, nor the fork that is not yet that process."""
        with suppress(OSError):
            found = [int(one) for one in children.read_text().split()]
            others[:] = [one for one in found if b"LOCAL_RANK=1" in Path(f"/proc/{one}/environ").read_bytes()]
        return others

    try:
        wait_for(there)
        child = others[0]
        main.kill()
        wait_for(lambda: gone(child))
    finally:
        main.kill()
    assert "The first process of the run has ended" in main.communicate(timeout=600)[1]


def test_a_batch_that_does_not_divide_is_rejected(tiny_recipe):
    with pytest.raises(UserError, match=r"batch=4.*3 processes.*batch=3 or 6"):
        launch(tiny_recipe("runtime.gpus=3", "runtime.device=cpu"))


def test_a_mac_trains_on_its_cpu(tiny_recipe, monkeypatch):
    """Its GPU has no float64, which geometry needs."""
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _, fabric = launch(tiny_recipe("runtime.device=auto"))
    assert fabric.device.type == "cpu"
    with pytest.raises(UserError, match=r"runtime\.device = 'mps'.*'cuda'"):
        tiny_recipe("runtime.device=mps")


def test_a_device_that_is_not_there_is_a_sentence(tiny_recipe):

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"runtime\.device=cuda"):
        launch(tiny_recipe("runtime.device=cuda"))


@pytest.mark.long
def test_two_processes_resume_between_rows_of_the_log_and_write_the_same_row(tiny_recipe, tmp_path):
    """Each process has averages of its own since the last row; a checkpoint keeps those of all."""
    settings = ["runtime.device=cpu", "runtime.gpus=2", "runtime.threads=1", "log.every=4"]
    settings += ["checkpoint.every=2", "checkpoint.keep_last=9"]
    recipe = tiny_recipe(*settings, out="run", steps=4)
    folder, _ = run_cli(tmp_path, recipe, "run")
    before = losses(folder)
    for step in checkpoints.steps(folder.checkpoints)[1:]:
        shutil.rmtree(checkpoints.path_of(folder.checkpoints, step))
    assert checkpoints.steps(folder.checkpoints) == [2]
    command = [sys.executable, "-m", "viewalign", "pretrain", str(tmp_path / "run.yaml"), "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Resuming from step 2" in done.stderr
    assert losses(folder) == before
