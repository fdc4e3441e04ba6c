"""Shards of a study are complete chains, and the SLURM script is valid."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest
from typer.testing import CliRunner

import viewalign
from viewalign.cli.main import app
from viewalign.errors import UserError
from viewalign.studies.cells import chains, only, share, slurm_script

from .conftest import write_data


def test_shards_cover_every_cell_once_with_its_dependencies(make):
    grid = make(seeds=3)
    assert len(chains(grid.study)) == 6  # cva starts from mae
    for count in (1, 2, 4, 6, 9):
        parts = [share(grid.study, grid.cells, f"{k}/{count}") for k in range(1, count + 1)]
        assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in grid.cells)
        for part in parts:
            assert all(cell.needs is None or cell.needs in part for cell in part)


@pytest.mark.parametrize("once", ["mae", "cva"])
def test_shards_of_an_arm_that_is_pretrained_once(make, once):
    arms = {"mae": {"recipe": "mae-resenc-xs"}, "cva": {"recipe": "cva-resenc-xs", "start": "mae"}}
    arms[once]["once"] = True
    grid = make(seeds=3, arms=arms)
    pretrained = [cell.name for cell in grid.cells if cell.name.startswith("pretrain/cva")]
    assert pretrained == ["pretrain/cva/0"]
    parts = [share(grid.study, grid.cells, f"{k}/2") for k in (1, 2)]
    assert sorted(cell.name for part in parts for cell in part) == sorted(cell.name for cell in grid.cells)
    for part in parts:
        assert all(cell.needs is None or cell.needs in part for cell in part)


@pytest.mark.parametrize("job", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_invalid_shards(make, job):
    grid = make()
    with pytest.raises(UserError, match="shard="):
        share(grid.study, grid.cells, job)


def test_a_pattern_selects_dependencies(make):
    grid = make()
    found = [cell.name for cell in only(grid.cells, "evaluate/places/cva/*")]
    assert found == ["pretrain/mae/0", "pretrain/cva/0", "evaluate/places/cva/0"]
    with pytest.raises(UserError, match="seg"):
        only(grid.cells, "seg")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_script(make, device):
    text = slurm_script(make(seeds=2, device=device).study, ["a b/python", "it's"], "logs/%a.log")
    told = subprocess.run([shutil.which("bash"), "-n"], input=text, text=True, capture_output=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert "#SBATCH --array=1-4\n" in text
    assert ("#SBATCH --gres=gpu:1\n" in text) == (device == "auto")
    assert """'a b/python' 'it'"'"'s' "shard=${SLURM_ARRAY_TASK_ID}/4" &""" in text


def test_a_task_near_its_time_limit_requeues_itself(make, tmp_path):
    """What SLURM does, done by hand: USR1 to the script, which stops its work and calls scontrol."""
    work = tmp_path / "work.sh"
    work.write_text("trap 'echo stopped; exit 143' TERM\necho begun $1\nwhile :; do sleep 0.05; done\n")
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho scontrol $*\n")
    (tmp_path / "scontrol").chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(slurm_script(make().study, ["bash", str(work)], "x"))
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    command = ["bash", str(script)]
    job = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert job.stdout.readline() == "begun shard=2/2\n"
        job.send_signal(signal.SIGUSR1)
        assert job.communicate(timeout=30)[0] == "stopped\nscontrol requeue 7_2\n"
        assert job.returncode == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


def test_the_command_writes_it_without_looking_at_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["study", "geometry-laptop", "somewhere", "-o", "out", "--slurm", "job.sh", "seeds=4"]
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 0, told.output
    text = (tmp_path / "job.sh").read_text()
    assert (
        f'study geometry-laptop \'data.root="{tmp_path / "somewhere"}"\' seeds=4 -o {tmp_path / "out"} "shard=' in text
    )
    assert "--array=1-20" in text
    assert (tmp_path / "out" / "slurm").is_dir()


def test_a_script_keeps_the_limit_of_time_and_is_of_studies_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    viewalign.study("geometry-laptop", "somewhere", "out", minutes=60).write_slurm("job.sh")
    assert " minutes=60 -o " in (tmp_path / "job.sh").read_text()
    other = viewalign.compare_methods("store", "images", "labels", "cm", methods=["mae"], learn="a", test="b")
    with pytest.raises(UserError, match="Only a plan of `study`"):
        other.write_slurm("other.sh")
    assert not (tmp_path / "other.sh").exists()


def test_the_command_of_a_job_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    own = {"store": "store", "labelled": {"images": "images", "labels": "labels", "learn": ["c0"], "test": ["c1"]}}
    tree = {"data": own, "arms": {"mae": {"recipe": "mae-resenc-xs"}}, "evaluations": {"places": {"kind": "retrieval"}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(tree))
    changes = ["seeds=2", 'data.labelled.test=["c2"]', "arms.mae.settings.batch=3"]
    told = CliRunner().invoke(app, ["study", "mine.yaml", ".", "-o", "out", "--slurm", "job.sh", *changes])
    assert told.exit_code == 0, told.output
    line = next(line for line in (tmp_path / "job.sh").read_text().splitlines() if "-m viewalign" in line)
    words = shlex.split(re.sub(r"\$\{\w+\}", "1", line).rstrip("&"))
    job = CliRunner().invoke(app, [*words[words.index("viewalign") + 1 :], "--dry-run"])
    assert job.exit_code == 0, job.exception
    assert sorted(job.output.split()[2::3]) == ["evaluate/places/mae/0", "pretrain/mae/0"]
